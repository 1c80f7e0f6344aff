"""Faults of arrays on their way to the device and back, and of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from octavo.backend import DenseWeight, DeviceConfig, DType, TensorSource, Weight, WeightRole
from octavo_wrong.device import WrongDevice
from octavo_wrong.fault import Fault, in_device

Array = Any


def faults() -> Iterator[Fault]:
    for device in (UploadRounds, UploadTakesNoViews, DownloadsShareOneBuffer, SubnormalsFlushed):
        yield in_device("arrays", device=device)
    for device in (LoadKeepsView, LoadTruncates, LoadKeepsItsDtype, LoadWritesToSource):
        yield in_device("load", device=device)
    yield in_device("prepare", device=TiedEmbeddingTransposed)


# ------------------------------------------------------------------------------------------------- arrays and weights


class UploadRounds(WrongDevice):
    """float32 arrays are rounded to bfloat16 on their way to the device."""

    def upload(self, host: np.ndarray) -> Array:
        return host.astype(DType.BFLOAT16.numpy).astype(np.float32) if host.dtype == np.float32 else host


class UploadTakesNoViews(WrongDevice):
    """upload() copies the bytes from the array's first one on, whatever its strides."""

    def upload(self, host: np.ndarray) -> Array:
        if host.flags.c_contiguous or host.base is None:
            return host
        base = np.ascontiguousarray(host.base).reshape(-1).view(host.dtype)
        return np.resize(base, host.shape)


class DownloadsShareOneBuffer(WrongDevice):
    """Downloads of one shape return one buffer, which the next of them writes to again."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self._buffers: dict[Any, np.ndarray] = {}

    def download(self, array: Array) -> np.ndarray:
        buffer = self._buffers.setdefault((array.shape, array.dtype), np.empty_like(array))
        buffer[...] = array
        return buffer


class SubnormalsFlushed(WrongDevice):
    """Numbers below the smallest normal one become 0 on their way."""

    def upload(self, host: np.ndarray) -> Array:
        if host.dtype != np.float32:
            return host
        return np.where(np.abs(host) < np.finfo(np.float32).tiny, np.float32(0), host)


class LoadKeepsView(WrongDevice):
    """A tensor that has the right dtype stays a view of the checkpoint's file."""

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        return tensor.read().astype(dtype.numpy, copy=False)


class LoadTruncates(WrongDevice):
    """float32 tensors lose their low bits on the way to bfloat16, and are not rounded."""

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        host = tensor.read()
        if dtype is not DType.BFLOAT16 or host.dtype != np.float32:
            return super().load(tensor, dtype)
        return (host.view(np.uint32) >> 16).astype(np.uint16).view(dtype.numpy)


class LoadKeepsItsDtype(WrongDevice):
    """A tensor stays in the dtype of its file, whatever was asked for."""

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        return super().load(tensor, tensor.dtype)


class LoadWritesToSource(WrongDevice):
    """load() does not copy a tensor of the right dtype, and prepare() repacks it in place: the checkpoint changes."""

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        host = tensor.read()
        return host if host.dtype == dtype.numpy and host.flags.writeable else super().load(tensor, dtype)

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        if role is not WeightRole.LINEAR or not isinstance(weight, DenseWeight):
            return weight
        right = DenseWeight(weight.array.copy(), weight.bias)
        weight.array[...] = weight.array[::-1].copy()
        return right


class TiedEmbeddingTransposed(WrongDevice):
    """A weight that is embedding and linear at once is packed for linear: its rows are those of a transposed matrix."""

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        if role is WeightRole.TIED_EMBEDDING and isinstance(weight, DenseWeight):
            rows, columns = weight.array.shape
            return DenseWeight(np.ascontiguousarray(weight.array.T).reshape(rows, columns), weight.bias)
        return weight
