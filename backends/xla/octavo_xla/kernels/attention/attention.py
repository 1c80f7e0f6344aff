"""`Ops.paged_attention` on a TPU: decodes by a kernel whose tile is one token, chunks of prompts by one of many.

Both are the same kernel. A tile of many tokens has rows enough for the matrix unit; for a decode it would compute
mostly what nobody asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from octavo.backend import AttentionMetadata, UnsupportedError
from octavo_xla.kernels.attention.kernel import Scoring, run
from octavo_xla.kernels.attention.sizes import Geometry, TileSizes, tile_sizes
from octavo_xla.kernels.attention.tiles import into_tiles, out_of_tiles, sinks_by_row
from octavo_xla.kernels.attention.work import cores_in_use, work_list
from octavo_xla.kernels.tiling import SMEM_TABLE_BYTES, round_up
from octavo_xla.kv import PagedKV


def paged_attention(
    q: jax.Array,
    kv: PagedKV,
    meta: AttentionMetadata,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    *,
    cores: int = 1,
    interpret: Any = False,
) -> jax.Array:
    """`Ops.paged_attention` over a `PagedKV`.

    q [tokens, heads, head_size] float32 or bfloat16 -> the same shape. Rows of the cache are whole rows of lanes, its
    blocks a multiple of 16 tokens, or of 32 where an entry has eight bits. Rows of its scales have at least as many
    entries as a block has tokens: whole rows of lanes on a TPU, where XLA turns shorter ones around in memory.

    cores: that a device has (2 where a chip's two cores are one device: v4, v5p); each takes half of the queries.
    interpret: True or `pltpu.InterpretParams` where there is no TPU. Raises UnsupportedError for dtypes, blocks and
    heads that the kernel does not take.
    """
    geometry = _geometry(q, kv)
    call = _Call(geometry, Scoring(scale, window, softcap), kv, sinks, cores, interpret)
    sequences, width = meta.block_tables.shape
    few = SMEM_TABLE_BYTES // (4 * width)  # sequences whose block tables fit scalar memory
    if not few:
        raise UnsupportedError(
            f"The TPU attention kernel takes block tables of at most {SMEM_TABLE_BYTES // 4:,} blocks, not of "
            f"{width:,}: take larger blocks."
        )
    result = call.attend(q, _sequences(meta, 0, few))
    for first in range(few, sequences, few):
        mine = (meta.sequences >= first) & (meta.sequences < first + few)
        result = jnp.where(mine[:, None, None], call.attend(q, _sequences(meta, first, few)), result)
    return result


def _geometry(q: jax.Array, kv: PagedKV) -> Geometry:
    return Geometry(
        kv_heads=kv.kv_heads,
        group=q.shape[1] // kv.kv_heads,
        head_size=q.shape[2],
        lanes=kv.data.shape[3],
        block_size=kv.block_size,
        dtype=np.dtype(q.dtype),
        kv_dtype=np.dtype(kv.data.dtype),
        scale_shape=None if kv.scales is None else kv.scales.shape[1:],
    )


def _sequences(meta: AttentionMetadata, first: int, count: int) -> AttentionMetadata:
    """Those sequences alone. Tokens of others belong to one of them by name only."""
    tables = meta.block_tables[first : first + count]
    return replace(
        meta,
        sequences=jnp.clip(meta.sequences - first, 0, tables.shape[0] - 1),
        query_starts=meta.query_starts[first : first + tables.shape[0] + 1],
        context_lengths=meta.context_lengths[first : first + count],
        block_tables=tables,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """What all kernels of a call share."""

    geometry: Geometry
    scoring: Scoring
    kv: PagedKV
    sinks: jax.Array | None
    cores: int
    interpret: Any

    def attend(self, q: jax.Array, meta: AttentionMetadata) -> jax.Array:
        """q [tokens, heads, head_size] -> the same shape; tokens of no sequence get anything."""
        starts, ends = meta.query_starts[:-1], meta.query_starts[1:]
        single = ends - starts == 1
        row = jnp.arange(len(starts), dtype=jnp.int32)
        picked = jnp.take(q, jnp.minimum(starts, len(q) - 1), axis=0)  # a query each, [sequences, ...]
        decoded = self._tiled(picked, row, jnp.where(single, row + 1, row), meta, tile_sizes(self.geometry, 1))
        decoded = jnp.take(decoded, meta.sequences, axis=0)
        if meta.decode_only:
            return decoded
        sizes = tile_sizes(self.geometry, len(q))
        others = self._tiled(q, starts, jnp.where(single, starts, ends), meta, sizes)
        return jnp.where(single[meta.sequences][:, None, None], decoded, others)

    def _tiled(
        self, queries: jax.Array, starts: jax.Array, ends: jax.Array, meta: AttentionMetadata, sizes: TileSizes
    ) -> jax.Array:
        """Attention of sequences whose queries are starts .. ends - 1 of `queries`."""
        tokens, scoring = round_up(len(queries), sizes.tokens), self.scoring
        cores = cores_in_use(tokens // sizes.tokens, self.cores)
        work = work_list(starts, ends, meta.context_lengths, tokens, sizes.tokens, scoring.window, cores)
        tiles = into_tiles(queries, self.geometry, sizes)
        sinks = None if self.sinks is None else sinks_by_row(self.sinks, self.geometry, sizes)
        out = run(self.geometry, sizes, scoring, work, meta.block_tables, tiles, self.kv, sinks, self.interpret)
        return out_of_tiles(out, self.geometry, sizes, len(queries))
