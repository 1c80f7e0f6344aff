"""Writes to the paged KV cache: scatters that XLA does in place where the cache is donated."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from octavo.backend import KVCache
from octavo_xla.kv import PagedKV
from octavo_xla.ops import scaled_kv


def write_kv(kv: PagedKV, k: jax.Array, v: jax.Array, slots: jax.Array) -> PagedKV:
    """Store a step's keys and values.

    k, v [tokens, kv_heads, head_size], slots int32 [tokens]. Several padding tokens may write to slot 0; which of them
    stays is not defined.
    """
    blocks, offsets = slots // kv.block_size, slots % kv.block_size
    scales = kv.scales
    if scales is not None:
        k, key_scales = scaled_kv.encode(k, kv.data.dtype)
        v, value_scales = scaled_kv.encode(v, kv.data.dtype)
        pairs = jnp.stack([key_scales, value_scales], axis=-1)  # [tokens, kv_heads, 2]
        rows = pairs.reshape(-1, 2 * kv.kv_heads)
        scales = scales.at[blocks, : 2 * kv.kv_heads, offsets].set(rows, mode="drop")
    entries = jnp.concatenate([k, v], axis=-1).astype(kv.data.dtype)  # [tokens, kv_heads, 2 * head_size]
    used = entries.shape[-1]
    data = kv.data.at[blocks, :, offsets, :used].set(entries, mode="drop")
    return replace(kv, data=data, scales=scales)


def copy_blocks(kv: KVCache, source: jax.Array, target: jax.Array) -> list[PagedKV]:
    """Blocks source[i] to target[i] in every layer, all read before any is written. source, target int32 [n]."""
    return [
        replace(
            layer,
            data=_copied(layer.data, source, target),
            scales=None if layer.scales is None else _copied(layer.scales, source, target),
        )
        for layer in kv
    ]


def _copied(pool: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    return pool.at[target].set(jnp.take(pool, source, axis=0, mode="clip"), mode="drop")
