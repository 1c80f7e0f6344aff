"""Between NumPy and torch without losing a dtype: NumPy has bfloat16 and float8 through ml_dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo.backend import DType

_BITS = {1: np.uint8, 2: np.uint16}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of the same name."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor on the array's own memory; on a copy where the array is read-only or not contiguous."""
    # NumPy calls a reversed axis of length 1 contiguous, and torch takes no negative stride whatever the length.
    if not array.flags.writeable or not array.flags.c_contiguous or min(array.strides, default=0) < 0:
        array = array.copy(order="C")
    if array.dtype.kind == "V":  # ml_dtypes
        bits = array.view(_BITS[array.dtype.itemsize])
        return torch.from_numpy(bits).view(torch_dtype(DType.of(array)))
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array on the memory of a host tensor."""
    tensor = tensor.detach()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        bits = torch.uint16 if tensor.element_size() == 2 else torch.uint8
        return tensor.view(bits).numpy().view(DType(name).numpy)
    return tensor.numpy()
