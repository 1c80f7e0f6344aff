"""Tensor parallelism: what the shards of one model say to each other."""

from __future__ import annotations

from octavo.backend.weights import Array


class Collectives:
    """The communication of one shard. The defaults are those of a single shard.

    size is read while a model is built and inside a step, where it divides heads; rank is not read inside a step, so
    that one program can run on every shard of a mesh (shard_map). A device whose arrays are sharded by its compiler (a
    GSPMD mesh) is a single shard here: the model sees whole arrays.
    """

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Array) -> Array:
        """(optional) Sum of x over the shards, the same bits on each."""
        return x

    def all_gather(self, x: Array, axis: int) -> Array:
        """(optional) The shards' x concatenated along `axis` in order of rank."""
        return x
