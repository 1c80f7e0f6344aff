"""Several arrays in one buffer, so that they travel as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from octavo.backend import DType

_ALIGNMENT = 16
"""Bytes. Kernels are compiled once more for pointers that are aligned otherwise."""

_NAMES = frozenset(dtype.value for dtype in DType)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies: `offset` bytes from the start."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, of an array without gaps
    dtype: torch.dtype
    numpy_dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of arrays in a buffer of `size` bytes; equal for arrays of the same shapes and dtypes."""

    places: tuple[Place, ...]
    size: int

    @classmethod
    def of(cls, forms: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> Layout:
        """One after the other. forms: (shape, dtype) of each array."""
        places, offset = [], 0
        for shape, dtype in forms:
            strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
            place = Place(offset, shape, strides, dtype, numpy_dtype(dtype))
            places.append(place)
            offset += -(-place.size // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(places), max(offset, _ALIGNMENT))

    def tensors(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The arrays in a buffer, as views. buffer uint8 [size]."""
        typed = {dtype: buffer.view(dtype) for dtype in {place.dtype for place in self.places}}
        return [
            typed[place.dtype].as_strided(place.shape, place.strides, place.offset // place.dtype.itemsize)
            for place in self.places
        ]

    def arrays(self, buffer: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """The arrays in a host buffer, as views. buffer uint8 [size or more]."""
        return [
            buffer[place.offset : place.offset + place.size].view(place.numpy_dtype).reshape(place.shape)
            for place in self.places
        ]


NOTHING = Layout((), 0)
"""The layout of no arrays."""


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy dtype of the same name; bfloat16 and float8 are those of ml_dtypes."""
    name = str(dtype).removeprefix("torch.")
    return DType(name).numpy if name in _NAMES else np.dtype(name)
