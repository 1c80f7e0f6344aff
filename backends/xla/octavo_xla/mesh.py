"""The devices that share a model: a mesh of one axis, which every program runs on (`shard_map`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from octavo.backend import Array, Collectives, UnsupportedError

AXIS = "shards"


class ShardMesh:
    """Devices in order of rank. Raises UnsupportedError where fewer are there than were asked for."""

    def __init__(self, devices: Sequence[Any], size: int) -> None:
        if size > len(devices):
            raise UnsupportedError(
                f"A mesh of {size} devices was asked for (tensor_parallel_size); {len(devices)} "
                f"{'is' if len(devices) == 1 else 'are'} there, which is the largest mesh that fits."
            )
        self.devices = tuple(devices[:size])
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        """Where an array is that every device holds whole."""

    @property
    def size(self) -> int:
        return len(self.devices)

    def split(self, axis: int) -> NamedSharding:
        """Where an array is that is split along an axis."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def upload(self, host: np.ndarray) -> Array:
        """A host array, whole on each device."""
        return jax.device_put(host, self.whole)

    def full(self, shape: tuple[int, ...], value: float, dtype: str, sharding: NamedSharding) -> Array:
        """An array of one value, made on the devices: nothing of that size is on the host."""
        return jnp.full(shape, value, dtype, device=sharding)

    def place(self, sharding: NamedSharding, shape: tuple[int, ...], parts: Sequence[np.ndarray]) -> Array:
        """One array of the devices' parts, each a host array; the whole one, once, where `sharding` is `whole`.

        A part is taken when the one before is on its device and held no longer: where `parts` makes them, there is one
        at a time.
        """
        split = len(parts) == self.size
        on_devices = [_sent(parts[rank if split else 0], device) for rank, device in enumerate(self.devices)]
        return jax.make_array_from_single_device_arrays(shape, sharding, on_devices)


def _sent(part: np.ndarray, device: Any) -> Array:
    """A host array on a device, arrived: jax holds on to it no longer."""
    return jax.device_put(part, device).block_until_ready()


class MeshCollectives(Collectives):
    """The communication of the shards of a program. One process runs them all, so there is no rank to ask for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, x: Array) -> Array:
        return jax.lax.psum(x, AXIS) if self.size > 1 else x

    def all_gather(self, x: Array, axis: int) -> Array:
        return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True) if self.size > 1 else x


def spec_of(array: Any) -> PartitionSpec:
    """How an array is split; whole where its sharding does not say."""
    sharding = getattr(array, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
