"""Steps over a paged cache with random contents, and how far a result is from attention in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from octavo.backend import AttentionMetadata
from octavo.backend.tree import tree_map
from octavo_conformance.hostile.batch import Batch, Chunk, lay_out
from octavo_conformance.oracles.attention import attention
from octavo_xla.kv import PagedKV, row_lanes

EIGHT_BITS = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
"""The cache dtypes that carry scales, and their largest entry."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of attention. Whatever no query may attend to is NaN (or the largest code), padding included."""

    batch: Batch
    meta: AttentionMetadata
    q: jax.Array  # [tokens, heads, head_size]
    kv: PagedKV
    keys: NDArray[np.float64]  # [slots, kv_heads, head_size], what the cache stands for
    values: NDArray[np.float64]
    scale: float
    window: int | None
    softcap: float | None
    sinks: jax.Array | None

    def error(self, came: jax.Array) -> float:
        """Of the real tokens: normalised mean squared error of the worst head; infinite where anything is NaN."""
        worst = 0.0
        for sequence, chunk in enumerate(self.batch.chunks):
            slots, rows = self.batch.slots(sequence, np.arange(chunk.context)), self.batch.rows(sequence)
            sinks = None if self.sinks is None else np.asarray(self.sinks)
            q = np.asarray(self.q[rows], np.float64)
            right = attention(q, self.keys[slots], self.values[slots], self.scale, self.window, self.softcap, sinks)
            errors = np.square(np.asarray(came[rows], np.float64) - right).sum(-1) / np.square(right).sum(-1)
            worst = max(worst, math.inf if np.isnan(errors).any() else float(errors.max()))
        return worst


def step(
    chunks: Sequence[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 64,
    block_size: int = 16,
    dtype: str = "float32",
    kv_dtype: str = "float32",
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    scale_shape: tuple[int, int] | None = None,
    pad_tokens: int = 3,
    pad_sequences: int = 2,
    pad_blocks: int = 1,
    seed: int = 0,
) -> Step:
    """chunks: context and queries of each sequence. scale_shape: rows and entries of a block's scales."""
    rng = np.random.default_rng(seed)
    batch = lay_out(
        rng,
        [Chunk(*chunk) for chunk in chunks],
        block_size,
        pad_tokens=pad_tokens,
        pad_sequences=pad_sequences,
        pad_blocks=pad_blocks,
    )
    meta = tree_map(jnp.asarray, batch.inputs.attention)
    q = rng.standard_normal((len(batch.inputs.token_ids), heads, head_size))
    q[batch.tokens :] = np.nan
    owned = np.zeros(batch.num_blocks * block_size, bool)
    for sequence, chunk in enumerate(batch.chunks):
        first = 0 if window is None else max(0, chunk.context - chunk.queries - window + 1)
        owned[batch.slots(sequence, np.arange(first, chunk.context))] = True
    kv, keys, values = _cache(rng, owned, kv_heads, head_size, block_size, jnp.dtype(kv_dtype))
    if kv.scales is not None and scale_shape is not None:
        spare = ((0, 0), (0, scale_shape[0] - 2 * kv_heads), (0, scale_shape[1] - block_size))
        kv = replace(kv, scales=jnp.pad(kv.scales, spare, constant_values=jnp.nan))
    sink = jnp.asarray(rng.standard_normal(heads), jnp.float32) if sinks else None
    return Step(batch, meta, jnp.asarray(q, dtype), kv, keys, values, head_size**-0.5, window, softcap, sink)


def _cache(
    rng: np.random.Generator, owned: NDArray[np.bool_], kv_heads: int, head_size: int, block_size: int, dtype: np.dtype
) -> tuple[PagedKV, NDArray[np.float64], NDArray[np.float64]]:
    """A cache of random entries in the slots that are owned and of poison in all others, and what it stands for."""
    slots, lanes = len(owned), row_lanes(head_size, padded=True)
    rows = rng.standard_normal((slots, kv_heads, lanes))
    scales = None
    if dtype.name in EIGHT_BITS:
        scales = rng.uniform(0.01, 0.03, (slots, kv_heads, 2)).astype(np.float32)
        rows = np.clip(rows * 40, -127, 127).round() if dtype == np.int8 else rows * 40
    poison = 127 if dtype == np.int8 else np.nan
    rows[~owned] = poison
    rows[..., 2 * head_size :] = poison
    stored = rows.astype(dtype)
    sides = np.split(stored[..., : 2 * head_size].astype(np.float64), 2, axis=-1)
    if scales is not None:
        scales[~owned] = np.nan
        sides = [side * scales[..., which : which + 1] for which, side in enumerate(sides)]
        scales = scales.reshape(-1, block_size, 2 * kv_heads).transpose(0, 2, 1)
    data = stored.reshape(-1, block_size, kv_heads, lanes).transpose(0, 2, 1, 3)
    return PagedKV(jnp.asarray(data), None if scales is None else jnp.asarray(scales), head_size), sides[0], sides[1]
