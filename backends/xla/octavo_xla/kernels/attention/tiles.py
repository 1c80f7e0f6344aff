"""Queries in tiles and results back: a row of a tile is one head of one token.

queries   [tokens, heads, head_size]
tiles     [tiles, kv_heads, rows, width]     row t * group + g: token t of the tile, head g of the KV head's group
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from octavo_xla.kernels.attention.sizes import Geometry, TileSizes
from octavo_xla.kernels.tiling import round_up


def into_tiles(q: jax.Array, geometry: Geometry, sizes: TileSizes) -> jax.Array:
    """Tokens are filled up to whole tiles, heads to the kernel's width, a tile's rows to whole registers; with zeros,
    which the kernel relies on in the lanes where a row of the cache has its value."""
    spare = round_up(q.shape[0], sizes.tokens) - q.shape[0]
    q = jnp.pad(q, ((0, spare), (0, 0), (0, geometry.width - geometry.head_size)))
    q = q.reshape(-1, sizes.tokens, geometry.kv_heads, geometry.group, geometry.width)
    tiles = _merged(jnp.swapaxes(q, 1, 2))
    return jnp.pad(tiles, ((0, 0), (0, 0), (0, geometry.rows(sizes.tokens) - tiles.shape[2]), (0, 0)))


def out_of_tiles(tiles: jax.Array, geometry: Geometry, sizes: TileSizes, tokens: int) -> jax.Array:
    """The results of the first `tokens` tokens."""
    first = 0 if geometry.split else geometry.head_size  # values come second in a row of the cache
    rows = tiles[:, :, : sizes.tokens * geometry.group, first : first + geometry.head_size]
    rows = rows.reshape(-1, geometry.kv_heads, sizes.tokens, geometry.group, geometry.head_size)
    return jnp.swapaxes(rows, 1, 2).reshape(-1, geometry.kv_heads * geometry.group, geometry.head_size)[:tokens]


def sinks_by_row(sinks: jax.Array, geometry: Geometry, sizes: TileSizes) -> jax.Array:
    """sinks [heads] -> float32 [kv_heads, rows]."""
    rows = jnp.tile(sinks.astype(jnp.float32).reshape(geometry.kv_heads, geometry.group), (1, sizes.tokens))
    return jnp.pad(rows, ((0, 0), (0, geometry.rows(sizes.tokens) - rows.shape[1])))


def _merged(x: jax.Array) -> jax.Array:
    tiles, heads, tokens, group, width = x.shape
    return x.reshape(tiles, heads, tokens * group, width)
