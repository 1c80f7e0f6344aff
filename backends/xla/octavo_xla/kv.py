"""The KV cache of one layer, as the XLA backend keeps it.

    data      [blocks, kv_heads, block_size, lanes]       one block of all heads is contiguous: one copy brings it
    a row     [ K: head_size | V: head_size | padding ]   on a TPU padded to whole rows of 128 lanes
    scales    [blocks, scale rows, entries]               of caches of eight bits: row 2h is K's of head h, 2h + 1 V's

A key of 64 and its value fill one row of lanes; apart they would be padded to twice the memory. Axis 1 is the one that
tensor parallelism splits, of both arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from octavo.backend import Array, DType, KVLayout

LANES = 128
"""Entries of a row of a TPU's vector registers: the last axis of its arrays is padded to a multiple of it."""

SUBLANES = 8
"""Rows of a tile of entries of 32 bits in a TPU's memory."""

TILE_OF_BYTES = 32
"""Rows of a tile of entries of eight bits in a TPU's memory."""

SCALED = (DType.INT8, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2)
"""Cache dtypes of eight bits, whose tokens carry a scale for each head and side."""


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Keys and values of one layer on one shard.

    data: in the cache's dtype. scales: float32, None where the dtype is not `SCALED`; an entry is data * scale.
    """

    data: Array  # [blocks, kv_heads, block_size, lanes]
    scales: Array | None  # [blocks, 2 * kv_heads rows, entries], an entry a slot; more of both, unused, on a TPU
    head_size: int

    @property
    def block_size(self) -> int:
        return int(self.data.shape[2])

    @property
    def kv_heads(self) -> int:
        return int(self.data.shape[1])


def row_lanes(head_size: int, padded: bool) -> int:
    """Entries of a row. padded: to whole rows of lanes, as TPUs keep it anyway."""
    size = 2 * head_size
    return -(-size // LANES) * LANES if padded else size


def scale_shape(kv_heads: int, block_size: int, padded: bool) -> tuple[int, int]:
    """Rows and entries of a block's scales, on one shard. padded: to whole tiles of 8 rows of lanes; XLA would lay out
    less another way than kernels take it, and copy all scales back and forth.
    """
    rows, entries = 2 * kv_heads, block_size
    return (-(-rows // SUBLANES) * SUBLANES, -(-entries // LANES) * LANES) if padded else (rows, entries)


def block_bytes(layout: KVLayout, padded: bool) -> int:
    """Bytes of one block over all layers."""
    data = layout.kv_heads * layout.block_size * row_lanes(layout.head_size, padded) * layout.dtype.itemsize
    scales = 4 * prod(scale_shape(layout.kv_heads, layout.block_size, padded)) if layout.dtype in SCALED else 0
    return layout.layers * (data + scales)
