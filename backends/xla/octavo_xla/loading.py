"""From a checkpoint's file to the devices' memory, a shard at a time: no more than one is ever on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.backend import Array, ConcatenatedSource, DType, TensorSource, UnsupportedError
from octavo_xla.mesh import ShardMesh


def load(mesh: ShardMesh, tensor: TensorSource, dtype: DType) -> Array:
    """The tensor on the mesh in `dtype`, split along its shard axis.

    Each device's part is read for itself, so that it is right for fused tensors too, whose parts are split one by one:
    the whole array has its rows in the order of the devices. Raises UnsupportedError where the axis does not divide.
    """
    axis = tensor.shard_axis
    if axis is None or mesh.size == 1:
        return mesh.place(mesh.whole, tensor.shape, [_read(tensor, dtype)])
    try:
        shards = [tensor.shard(rank, mesh.size) for rank in range(mesh.size)]
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    return mesh.place(mesh.split(axis), tensor.shape, _Lazily(shards, dtype))


class _Lazily(Sequence[np.ndarray]):
    """The shards as host arrays, each read when it is asked for and forgotten then."""

    def __init__(self, shards: Sequence[TensorSource], dtype: DType) -> None:
        self._shards, self._dtype = shards, dtype

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices are taken
        return _read(self._shards[index], self._dtype)


def _read(tensor: TensorSource, dtype: DType) -> np.ndarray:
    """A copy, always: jax may keep what it is given, and the mapped file may be closed after loading."""
    host = np.empty(tensor.shape, dtype.numpy)
    row = 0
    for part in _parts(tensor):
        if part is tensor:
            np.copyto(host, part.read(), casting="unsafe")
            break
        end = row + part.shape[0]
        np.copyto(host[row:end], part.read(), casting="unsafe")
        row = end
    return host


def _parts(tensor: TensorSource) -> list[TensorSource]:
    if not isinstance(tensor, ConcatenatedSource):
        return [tensor]
    return [leaf for part in tensor.parts for leaf in _parts(part)]
