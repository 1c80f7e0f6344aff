"""The list of work of an attention kernel: each tile of queries with each sequence that has queries in it.

A tile is a fixed number of consecutive tokens, so one tile may hold the end of a sequence and the start of the next.
The list names pairs in the order of the tokens (the grouping that MegaBlocks, Gale et al. 2023, and Megablox use for
experts): its length is bounded by the shapes alone, and what it says is data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class WorkList(NamedTuple):
    """Items in the order of their tiles; all int32 [items]. Entries from `first[-1]` on are padding.

    first [cores + 1]: the first item of each core, each core taking consecutive tiles.
    tile, sequence: the pair. rows_from, rows_to: the tile's tokens that belong to the sequence.
    position: where in the sequence the tile's token 0 stands, or would stand (below 0 where the sequence starts later).
    keys_from, keys_to: positions that at least one of the item's tokens attends to.
    """

    first: Array
    tile: Array
    sequence: Array
    rows_from: Array
    rows_to: Array
    position: Array
    keys_from: Array
    keys_to: Array


def work_list(
    starts: Array, ends: Array, context_lengths: Array, tokens: int, tile: int, window: int | None, cores: int
) -> WorkList:
    """The work of sequences whose queries are tokens starts .. ends - 1 of `tokens`, in ascending order.

    starts, ends, context_lengths int32 [sequences]; a sequence with starts == ends has no work. tile: tokens of a tile;
    it divides `tokens`. cores: each takes an equal number of tiles, the last one what is left (see `cores_in_use`).
    """
    sequences, tiles = starts.shape[0], tokens // tile
    first_tile = starts // tile
    count = jnp.where(ends > starts, (ends - 1) // tile + 1 - first_tile, 0)
    until = jnp.cumsum(count, dtype=jnp.int32)
    item = jnp.arange(most_items(tiles, tile, sequences), dtype=jnp.int32)
    sequence = jnp.searchsorted(until, item, side="right", method="compare_all").astype(jnp.int32)
    real = item < until[-1]
    sequence = jnp.where(real, sequence, 0)
    chosen = jnp.where(real, first_tile[sequence] + item - (until - count)[sequence], tiles - 1)
    start, end = starts[sequence], ends[sequence]
    position = context_lengths[sequence] - end + chosen * tile
    rows_from = jnp.maximum(start - chosen * tile, 0)
    rows_to = jnp.minimum(end - chosen * tile, tile)
    keys_from = jnp.zeros_like(item) if window is None else jnp.maximum(position + rows_from - (window - 1), 0)
    borders = jnp.arange(1, cores, dtype=jnp.int32) * -(-tiles // cores)
    inner = jnp.sum((chosen[None, :] < borders[:, None]) & real[None, :], axis=1, dtype=jnp.int32)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), inner, until[-1:]])
    return WorkList(first, chosen, sequence, rows_from, rows_to, position, keys_from, position + rows_to)


def cores_in_use(tiles: int, cores: int) -> int:
    """Of so many cores, those that get a tile where each takes an equal number: there are none beyond them. A core
    without a tile of its own would still write one back, over what another core computes.
    """
    return -(-tiles // -(-tiles // cores))


def most_items(tiles: int, tile: int, sequences: int) -> int:
    """The most pairs that `tiles` tiles can have: one each, and one more for each border of two sequences in a tile."""
    return tiles if tile == 1 else tiles + min(sequences, tiles * tile) - 1
