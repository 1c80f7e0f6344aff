"""The paged KV cache as core describes it and as a backend holds it.

    pool      block 0      block 1      block 2      ...      block B-1
             [ null    ]  [ S slots ]  [ S slots ]           [ S slots ]      S = block_size
    slot      0 .. S-1     S .. 2S-1    2S .. 3S-1

Token `p` of a sequence lives in slot `block_table[p // S] * S + p % S`, in every layer. Block 0 is the null block:
padding writes go there, padding entries of block tables point there, and no one ever reads it into a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from octavo.backend.dtype import DType

LayerKV: TypeAlias = Any
"""One layer's keys and values, opaque to core. The reference ops keep one array
[2, blocks, block_size, kv_heads, head_size]; a backend may keep any layout, padding or compression."""

KVCache: TypeAlias = Sequence[LayerKV]
"""The whole cache: a list of one `LayerKV` per layer, as made by `Device.allocate_kv`."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What a KV cache has to hold.

    kv_heads: key/value heads of one layer on this shard.
    windows: per layer, the sliding window in tokens, or None where the layer attends to everything. A hint: a backend
        may size or group layers by it.
    query_heads: query heads of one layer on this shard, 0 where not known. A hint, for backends that plan attention on
        the host before the first layer runs, or pad heads to a tile.
    """

    layers: int
    kv_heads: int
    head_size: int
    block_size: int
    dtype: DType
    windows: tuple[int | None, ...] = ()
    query_heads: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers in the plain layout."""
        return 2 * self.layers * self.block_size * self.kv_heads * self.head_size * self.dtype.itemsize
