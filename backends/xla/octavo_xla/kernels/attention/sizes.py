"""How large the tiles of the attention kernel are, and the VMEM they take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from octavo.backend import UnsupportedError
from octavo_xla.kernels.tiling import SUBLANES, VMEM_LIMIT, packed_rows, round_up
from octavo_xla.kv import LANES

VMEM_BUDGET = VMEM_LIMIT * 3 // 4
"""Bytes for what the kernel allocates and its largest temporaries. The rest is for what the compiler keeps beside."""

TILE_ROWS = 128
"""Rows (queries times heads of a group) that a tile of a prompt aims at: the rows of a matrix unit."""

CHUNK_BYTES = 1 << 20
"""A chunk of keys and values aims at this size: a few copies of it hide the latency of memory ..."""

CHUNK_KEYS = (128, 512)
"""... within these bounds, so that scores fill rows of lanes and a short context does not wait for a long chunk."""

_QUERIES = ("bfloat16", "float32")
_ENTRIES = (*_QUERIES, "int8", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the shapes of a call fix.

    group: query heads of one KV head. lanes: of a row of the cache. dtype is that of the queries, kv_dtype the cache's.
    scale_shape: rows and lanes of a block's scales, None where the cache has none.
    """

    kv_heads: int
    group: int
    head_size: int
    lanes: int
    block_size: int
    dtype: np.dtype
    kv_dtype: np.dtype
    scale_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.dtype.name not in _QUERIES:
            raise UnsupportedError(f"The TPU attention kernel takes {' and '.join(_QUERIES)}, not {self.dtype.name}.")
        if self.kv_dtype.name not in _ENTRIES:
            raise UnsupportedError(
                f"The TPU attention kernel reads KV caches of {', '.join(_ENTRIES)}; not of {self.kv_dtype.name}."
            )
        least = max(16, packed_rows(self.kv_dtype))  # of fewer, XLA keeps the pool in another tiling and copies it
        if self.block_size % least or self.lanes % LANES:
            raise UnsupportedError(
                f"The TPU attention kernel reads {self.kv_dtype.name} caches in blocks of a multiple of {least} tokens "
                f"and rows of a multiple of {LANES} entries; not of {self.block_size} tokens and {self.lanes} entries."
            )

    @property
    def split(self) -> bool:
        """Keys and values start at a row of lanes each, so that either is read alone. Otherwise a tile works on whole
        rows of the cache: the queries are zero where values lie, and the values' part of the result is taken."""
        return self.head_size % LANES == 0

    @property
    def width(self) -> int:
        """Entries of a query and of a result as the kernel sees them."""
        return self.head_size if self.split else self.lanes

    @property
    def product_dtype(self) -> np.dtype:
        """Of the matrix products' operands. An entry of eight bits is exact in bfloat16."""
        wide = "float32" in (self.dtype.name, self.kv_dtype.name)
        return np.dtype(np.float32 if wide else jnp.bfloat16)

    def rows(self, tokens: int) -> int:
        """Rows of a tile: a group's heads of each token, filled up to whole tiles of registers."""
        return round_up(tokens * self.group, SUBLANES)


@dataclass(frozen=True, slots=True)
class TileSizes:
    """tokens: queries of a tile. blocks: cache blocks of a chunk. buffers: chunks that VMEM holds, one of them in use
    and the others on their way."""

    tokens: int
    blocks: int
    buffers: int


SMALLEST = TileSizes(tokens=1, blocks=1, buffers=2)
"""Less does not work: a chunk is fetched while another is in use."""


def tile_sizes(geometry: Geometry, tokens: int, budget: int = VMEM_BUDGET) -> TileSizes:
    """Sizes that fit the budget. tokens: 1 for a tile of a single query, or the most queries that a tile may have.

    Raises UnsupportedError where not even the smallest fit.
    """
    key_bytes = geometry.kv_heads * geometry.lanes * geometry.kv_dtype.itemsize
    keys = min(max(CHUNK_BYTES // key_bytes, CHUNK_KEYS[0]), CHUNK_KEYS[1])
    queries = min(tokens, round_up(TILE_ROWS // geometry.group, SUBLANES))
    sizes = TileSizes(queries, max(1, keys // geometry.block_size), buffers=4)
    while vmem_bytes(geometry, sizes) > budget:
        if sizes == SMALLEST:
            raise UnsupportedError(
                f"Attention with {geometry.kv_heads} KV heads of {geometry.head_size} in blocks of "
                f"{geometry.block_size} takes {vmem_bytes(geometry, sizes):,} bytes of a TPU's VMEM, and {budget:,} "
                f"are there: take smaller blocks, or split the heads over more chips."
            )
        sizes = _next_smaller(sizes)
    return sizes


def _next_smaller(sizes: TileSizes) -> TileSizes:
    """First fewer chunks on their way, then shorter ones, then fewer queries."""
    if sizes.buffers > SMALLEST.buffers:
        return replace(sizes, buffers=sizes.buffers - 1)
    if sizes.blocks > SMALLEST.blocks:
        return replace(sizes, blocks=sizes.blocks // 2)
    return replace(sizes, tokens=sizes.tokens // 2)


def vmem_bytes(geometry: Geometry, sizes: TileSizes) -> int:
    """Bytes of VMEM that a call takes.

    That is: chunks; queries, results and sinks, each twice, since one is copied while one is worked on; the state of
    the softmax; and the temporaries of one head's products.
    """
    heads, rows, keys = geometry.kv_heads, geometry.rows(sizes.tokens), sizes.blocks * geometry.block_size
    wide, scores = round_up(geometry.width, LANES), rows * round_up(keys, LANES) * 4
    chunks = sizes.buffers * heads * keys * geometry.lanes * geometry.kv_dtype.itemsize
    if geometry.scale_shape:
        scale_rows, scale_lanes = geometry.scale_shape
        slabs = sizes.buffers * sizes.blocks * round_up(scale_lanes, LANES) + round_up(keys, LANES)
        chunks += round_up(scale_rows, SUBLANES) * slabs * 4
    queries_and_results = 2 * 2 * heads * rows * wide * geometry.dtype.itemsize
    sinks = 2 * heads * rows * LANES * 4
    state = heads * rows * (wide + 2 * LANES) * 4
    operands = 2 * keys * wide * geometry.product_dtype.itemsize
    return chunks + queries_and_results + sinks + state + 3 * scores + operands
