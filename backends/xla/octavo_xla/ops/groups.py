"""Rows of mixed groups through a function of their group: experts and adapters, where each row takes its own weights.

    rows, sorted by group      a a a a a b d d d          tile of 4
    tiles                     [a a a a]
                                      [a . . .]           a dot is another group's row: computed, and not kept
                                        [b . . .]
                                          [d d d .]

How many tiles there are depends on the groups and is known on the device alone: shapes are static, groups without rows
cost nothing, and no row meets another group's weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_LEAST, _MOST = 8, 128
"""Rows of a tile: what a TPU's registers and matrix unit hold."""

Function = Callable[[jax.Array, jax.Array], jax.Array]
"""(rows [tile, n], group int32 scalar) -> [tile, width]; each row's result depends on that row alone."""


def by_group(x: jax.Array, source: jax.Array, ids: jax.Array, groups: int, width: int, function: Function) -> jax.Array:
    """`function` of rows of x, each with its group: float32 [n, width].

    x [tokens, size]. source int32 [n]: the row of x. ids int32 [n], 0 .. groups - 1, or `groups` for a row that has
    none: its result is 0.
    """
    tile = _tile(len(ids), groups)
    order = jnp.argsort(ids, stable=True).astype(jnp.int32)
    counts = jnp.sum(ids[:, None] == jnp.arange(groups, dtype=jnp.int32), axis=0, dtype=jnp.int32)  # [groups]
    starts = jnp.cumsum(counts) - counts
    tiles = -(-counts // tile)
    ends = jnp.cumsum(tiles)
    sources = jnp.pad(jnp.take(source, order, mode="clip"), (0, tile))  # the last tile reaches beyond the last row

    def one_tile(index: jax.Array, result: jax.Array) -> jax.Array:
        group = jnp.sum(ends <= index, dtype=jnp.int32)
        first = (index - ends[group] + tiles[group]) * tile
        start = starts[group] + first
        mine = first + jnp.arange(tile, dtype=jnp.int32) < counts[group]
        rows = jnp.take(x, lax.dynamic_slice_in_dim(sources, start, tile), axis=0, mode="clip")
        others = lax.dynamic_slice_in_dim(result, start, tile)
        # Replaced, not multiplied by zero: another group's row may have overflowed.
        kept = jnp.where(mine[:, None], function(rows, group).astype(jnp.float32), others)
        return lax.dynamic_update_slice_in_dim(result, kept, start, 0)

    result = lax.fori_loop(0, ends[-1], one_tile, jnp.zeros((len(ids) + tile, width), jnp.float32))
    places = jnp.zeros_like(order).at[order].set(jnp.arange(len(ids), dtype=jnp.int32), unique_indices=True)
    return jnp.take(result, places, axis=0, mode="clip")


def _tile(rows: int, groups: int) -> int:
    """Rows of a tile: what an average group has, rounded up to a power of two."""
    average = -(-rows // groups)
    return min(max(_LEAST, 1 << (average - 1).bit_length()), _MOST)
