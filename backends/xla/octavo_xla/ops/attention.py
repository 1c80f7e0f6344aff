"""Paged attention in plain XLA, for CPU and GPU.

Sequences with a single query (decodes) go side by side, a few at a time; the others tile by tile of queries, one
sequence at a time. Both walk their block tables in chunks of slots with an online softmax (Milakov and Gimelshein
2018). Shapes are static; how many tiles and chunks there are is known on the device alone, so one program serves every
length, and neither the width of a block table nor its empty rows cost anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from octavo.backend import AttentionMetadata
from octavo_xla.kv import PagedKV

CHUNK = 128
"""Slots that a pass looks at, of each sequence. Together with TILE it bounds the temporary memory."""

SIDE_BY_SIDE = 2
"""Decodes that walk together, as far as the longest of them goes."""

TILE = 64
"""Queries of one sequence that share the keys and values they read."""

_LOWEST = -1e30  # finite: exp(_LOWEST - _LOWEST) is 1 and not NaN, and the mask makes it 0
_NOWHERE = -1  # position of a query that sees nothing


@dataclass(frozen=True, slots=True)
class _Scoring:
    """What makes a score of q.k, and which of them a query has."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: jax.Array | None  # [heads]


def paged_attention(
    q: jax.Array,
    kv: PagedKV,
    meta: AttentionMetadata,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """[tokens, heads, head_size], as `Ops.paged_attention` has it; float32 inside, padding rows hold finite numbers."""
    scoring = _Scoring(scale, window, softcap, sinks)
    decoded = _decodes(q, kv, meta, scoring)  # [sequences, heads, head_size]
    result = jnp.take(decoded, meta.sequences, axis=0, mode="clip")
    if not meta.decode_only:
        single = jnp.take(_query_counts(meta) == 1, meta.sequences, mode="clip")
        result = jnp.where(single[:, None, None], result, _chunks_of_prompts(q, kv, meta, scoring))
    return result


# ---------------------------------------------------------------------------------------------------- work to be done


def _decodes(q: jax.Array, kv: PagedKV, meta: AttentionMetadata, scoring: _Scoring) -> jax.Array:
    """The only query of each sequence that has one; zeros for the others. [sequences, heads, head_size]."""
    positions = jnp.where(_query_counts(meta) == 1, meta.context_lengths - 1, _NOWHERE)
    count = positions.shape[0]
    size = min(SIDE_BY_SIDE, count)
    missing = -count % size
    mine = jnp.take(q, jnp.pad(meta.query_starts[:-1], (0, missing)), axis=0, mode="clip")
    positions = jnp.pad(positions, (0, missing), constant_values=_NOWHERE)
    tables = jnp.pad(meta.block_tables, ((0, missing), (0, 0)))

    def some(index: jax.Array, result: jax.Array) -> jax.Array:
        queries, at, table = (
            lax.dynamic_slice_in_dim(array, index * size, size) for array in (mine, positions, tables)
        )
        attended = _attend(queries[:, None], at[:, None], table, kv, scoring)[:, 0]
        return lax.dynamic_update_slice_in_dim(result, attended, index * size, 0)

    # Those without a query of this kind come last, or are of prompts: past the last decode there is nothing to do.
    last = jnp.max(jnp.where(positions == _NOWHERE, 0, jnp.arange(1, positions.shape[0] + 1, dtype=jnp.int32)))
    return lax.fori_loop(0, -(-last // size), some, jnp.zeros_like(mine))[:count]


def _chunks_of_prompts(q: jax.Array, kv: PagedKV, meta: AttentionMetadata, scoring: _Scoring) -> jax.Array:
    """The queries of all other sequences; zeros for the rest. [tokens, heads, head_size]."""
    tokens = q.shape[0]
    tile = min(TILE, tokens)
    counts = _query_counts(meta)
    tiles = jnp.where(counts > 1, -(-counts // tile), 0)  # [sequences]
    ends = jnp.cumsum(tiles)
    # The last tile reaches beyond the last token.
    padded = jnp.pad(q, ((0, tile), (0, 0), (0, 0)))
    positions = jnp.pad(meta.positions, (0, tile))

    def one_tile(index: jax.Array, result: jax.Array) -> jax.Array:
        sequence = jnp.sum(ends <= index)
        start = meta.query_starts[sequence] + (index - ends[sequence] + tiles[sequence]) * tile
        mine = start + jnp.arange(tile, dtype=jnp.int32) < meta.query_starts[sequence + 1]
        queries = lax.dynamic_slice_in_dim(padded, start, tile)
        at = jnp.where(mine, lax.dynamic_slice_in_dim(positions, start, tile), _NOWHERE)
        table = lax.dynamic_slice_in_dim(meta.block_tables, sequence, 1)
        attended = _attend(queries[None], at[None], table, kv, scoring)[0]
        others = lax.dynamic_slice_in_dim(result, start, tile)
        return lax.dynamic_update_slice_in_dim(result, jnp.where(mine[:, None, None], attended, others), start, 0)

    return lax.fori_loop(0, ends[-1], one_tile, jnp.zeros_like(padded))[:tokens]


def _query_counts(meta: AttentionMetadata) -> jax.Array:
    counts: jax.Array = meta.query_starts[1:] - meta.query_starts[:-1]
    return counts


# ------------------------------------------------------------------------------------------------------------- a walk


def _attend(q: jax.Array, positions: jax.Array, tables: jax.Array, kv: PagedKV, scoring: _Scoring) -> jax.Array:
    """Queries over the block table of their sequence, from the first slot that one of them sees to the last.

    q [sequences, queries, heads, head_size], positions int32 [sequences, queries], `_NOWHERE` for queries that see
    nothing (theirs are zeros), tables int32 [sequences, blocks] -> like q.
    """
    sequences, queries, heads, size = q.shape
    group = heads // kv.kv_heads
    blocks = min(max(1, CHUNK // kv.block_size), tables.shape[1])  # of a chunk
    slots = blocks * kv.block_size
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % blocks)))  # a slice beyond the end would be moved
    grouped = q.astype(jnp.float32).reshape(sequences, queries, kv.kv_heads, group, size).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(sequences, kv.kv_heads, group * queries, size)

    def one_chunk(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        best, total, output = state
        chunk = lax.dynamic_slice_in_dim(tables, index * blocks, blocks, axis=1)
        seen = _seen(index * slots + jnp.arange(slots, dtype=jnp.int32), positions, scoring.window)
        keys, values, key_scales, value_scales = _read(kv, chunk)
        # Slots that nobody owns may hold NaN, and 0 * NaN is NaN.
        values = jnp.where(jnp.any(seen, axis=1)[:, None, :, None], values, 0.0)
        scores = _multiplied(rows, keys, 3).reshape(*best.shape, slots) * scoring.scale
        if key_scales is not None:
            scores = scores * key_scales[:, :, None, None, :]
        if scoring.softcap is not None:
            scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
        mask = seen[:, None, None]  # [sequences, 1, 1, queries, slots]
        scores = jnp.where(mask, scores, _LOWEST)
        new_best = jnp.maximum(best, jnp.max(scores, axis=-1))
        weights = jnp.where(mask, jnp.exp(scores - new_best[..., None]), 0.0)
        decay = jnp.exp(best - new_best)
        total = total * decay + jnp.sum(weights, axis=-1)
        if value_scales is not None:
            weights = jnp.where(mask, weights * value_scales[:, :, None, None, :], 0.0)
        added = _multiplied(weights.reshape(*rows.shape[:3], slots), values, 2)
        return new_best, total, output * decay[..., None] + added.reshape(output.shape)

    best, total = _first_state(grouped.shape[:-1], scoring.sinks)
    first, last = _chunk_range(positions, slots, scoring.window)
    _, total, output = lax.fori_loop(first, last, one_chunk, (best, total, jnp.zeros_like(grouped)))
    # A padding query may see nothing at all; 0 / 1 keeps NaN out of its row.
    output = output / jnp.where(total == 0.0, 1.0, total)[..., None]
    return output.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _first_state(shape: tuple[int, ...], sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The online softmax before any score, [sequences, kv_heads, group, queries]: a sink is a score of its own."""
    if sinks is None:
        return jnp.full(shape, _LOWEST, jnp.float32), jnp.zeros(shape, jnp.float32)
    best = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(1, shape[1], shape[2], 1), shape)
    return best, jnp.ones(shape, jnp.float32)


def _chunk_range(positions: jax.Array, slots: int, window: int | None) -> tuple[jax.Array, jax.Array]:
    """First chunk of `slots` that some query sees, and the one after the last."""
    last = jnp.max(positions) // slots + 1
    if window is None:
        return jnp.zeros_like(last), last
    earliest = jnp.min(jnp.where(positions == _NOWHERE, jnp.iinfo(jnp.int32).max, positions))
    return jnp.maximum(earliest - (window - 1), 0) // slots, last


def _seen(slots: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """Which of the slots each query attends to: bool [sequences, queries, slots]."""
    seen: jax.Array = slots <= positions[..., None]
    if window is None:
        return seen
    return seen & (slots > positions[..., None] - window)


def _read(kv: PagedKV, tables: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Slots of the listed blocks: keys and values float32 [sequences, kv_heads, slots, head_size], before their scales.

    tables int32 [sequences, blocks]. Scales float32 [sequences, kv_heads, slots], or None.
    """
    sequences = tables.shape[0]
    # "clip": the default fills what is out of bounds, which takes XLA:CPU four times as long.
    rows = jnp.take(kv.data, tables, axis=0, mode="clip").transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(sequences, kv.kv_heads, -1, kv.data.shape[-1])
    keys = rows[..., : kv.head_size].astype(jnp.float32)
    values = rows[..., kv.head_size : 2 * kv.head_size].astype(jnp.float32)
    if kv.scales is None:
        return keys, values, None, None
    scales = jnp.take(kv.scales[:, : 2 * kv.kv_heads, : kv.block_size], tables, axis=0, mode="clip")
    scales = scales.transpose(0, 2, 1, 3).reshape(sequences, kv.kv_heads, 2, -1)
    return keys, values, scales[:, :, 0], scales[:, :, 1]


def _multiplied(left: jax.Array, right: jax.Array, contracted: int) -> jax.Array:
    """Batched product over sequences and KV heads: left's last axis with the axis `contracted` of right."""
    dimensions = (((3,), (contracted,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, dimensions, precision=lax.Precision.HIGHEST)
