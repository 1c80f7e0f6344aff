"""The XLA backend's device with a mesh of chips that are not there: its arrays are shapes with a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from octavo.backend import Array, DType, MemoryInfo, TensorSource, UnsupportedError
from octavo_xla.compiling import Compilations
from octavo_xla.device import XlaDevice
from octavo_xla.mesh import ShardMesh
from octavo_xla.platforms import Platform
from octavo_xla.probing import Attention

from .chips import Chip


class TopologyMesh(ShardMesh):
    """Chips of a topology."""

    def upload(self, host: np.ndarray) -> Array:
        return absent(host.shape, host.dtype, self.whole)

    def full(self, shape: tuple[int, ...], value: float, dtype: str, sharding: NamedSharding) -> Array:
        return absent(shape, DType(dtype).numpy, sharding)

    def place(self, sharding: NamedSharding, shape: tuple[int, ...], parts: Sequence[np.ndarray]) -> Array:
        raise RuntimeError("There is no chip to bring an array to.")


class TopologyDevice(XlaDevice):
    """What `XlaDevice` is on such a mesh. compilations: gets every program that a device would run."""

    def __init__(self, chip: Chip, shards: int, compilations: Compilations) -> None:
        self._chip = chip
        self.mesh = TopologyMesh(chip.devices(shards), shards)
        self._set_up(Platform.TPU, Attention.PALLAS, shards, compilations)

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        if (axis := tensor.shard_axis) is None or self.mesh.size == 1:
            return absent(tensor.shape, dtype.numpy, self.mesh.whole)
        try:
            tensor.shard(0, self.mesh.size)
        except ValueError as error:
            raise UnsupportedError(str(error)) from error
        return absent(tensor.shape, dtype.numpy, self.mesh.split(axis))

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self._chip.hbm, self._chip.hbm)


def absent(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Array:
    """An array of that shape in that place, without content."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
