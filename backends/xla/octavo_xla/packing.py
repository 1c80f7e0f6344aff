"""Many small arrays as one, so that they travel between host and device in one transfer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from octavo.backend import Array

Form = tuple[tuple[int, ...], str]
"""Shape and dtype of an array."""

WORDS = ("int32", "float32")
"""What is packed: entries of four bytes. Nearly all that a step reads and returns is."""


def form(array: Any) -> Form:
    return tuple(array.shape), str(array.dtype)


def packable(array: Any) -> bool:
    return str(array.dtype) in WORDS


@dataclass(frozen=True, slots=True)
class Packing:
    """Where arrays lie in a row of int32 words, one after the other. Hashable: part of a program's key."""

    forms: tuple[Form, ...]

    @classmethod
    def of(cls, arrays: Iterable[Any]) -> Packing:
        return cls(tuple(form(array) for array in arrays))

    @property
    def bounds(self) -> list[int]:
        """First word of each array, and the end."""
        return list(accumulate((prod(shape) for shape, _ in self.forms), initial=0))

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """int32 [words] on the host."""
        bounds = self.bounds
        words = np.empty(bounds[-1], np.int32)
        for array, start, stop in zip(arrays, bounds, bounds[1:], strict=False):
            words[start:stop] = np.ascontiguousarray(array).view(np.int32).ravel()
        return words

    def unpack(self, words: Array) -> list[Array]:
        """The arrays in words int32 [words]; inside a program."""
        arrays = []
        for (shape, dtype), start, stop in zip(self.forms, self.bounds, self.bounds[1:], strict=False):
            part = words[start:stop].reshape(shape)
            arrays.append(part if dtype == "int32" else jax.lax.bitcast_convert_type(part, jnp.float32))
        return arrays

    def unpack_host(self, words: np.ndarray) -> list[np.ndarray]:
        """The arrays in words int32 [words], as views."""
        return [
            words[start:stop].view(dtype).reshape(shape)
            for (shape, dtype), start, stop in zip(self.forms, self.bounds, self.bounds[1:], strict=False)
        ]


def packed(arrays: Sequence[Array]) -> Array:
    """int32 [words] of arrays that are `packable`; inside a program."""
    words = [array if array.dtype == jnp.int32 else jax.lax.bitcast_convert_type(array, jnp.int32) for array in arrays]
    return jnp.concatenate([array.reshape(-1) for array in words]) if words else jnp.zeros(0, jnp.int32)
