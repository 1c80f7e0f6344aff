"""Low-rank adapters for rows of mixed adapters (Hu et al. 2021).

A small bank is one matrix of all ranks: each row is multiplied with all of them, and those of other adapters are set to
zero between the two products. Two plain products, no wider than a matrix unit is anyway. A large one goes adapter by
adapter (Chen et al. 2023, Punica, has the same grouping).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from octavo.backend import LoRABank
from octavo_xla.ops.groups import by_group
from octavo_xla.ops.products import product

AT_ONCE = 256
"""Ranks of all adapters together, up to which each row is multiplied with all of them."""


def lora(x: jax.Array, y: jax.Array, bank: LoRABank, adapter_ids: jax.Array) -> jax.Array:
    """y + B[a] @ (A[a] @ x) for each row's adapter a, y unchanged at -1; see `Ops.lora`."""
    adapters, rank, _ = bank.a.shape
    change = _all_at_once if adapters * rank <= AT_ONCE else _one_by_one
    delta = change(x, bank, adapter_ids)
    changed = (y.astype(jnp.float32) + delta).astype(y.dtype)
    return jnp.where(adapter_ids[:, None] >= 0, changed, y)


def _all_at_once(x: jax.Array, bank: LoRABank, adapter_ids: jax.Array) -> jax.Array:
    own = adapter_ids[:, None] == jnp.arange(bank.a.shape[0], dtype=jnp.int32)  # [tokens, adapters]
    shrunk = product(x, bank.a, ((1,), (2,)))  # [tokens, adapters, rank]
    shrunk = jnp.where(own[..., None], shrunk, 0.0).astype(x.dtype)
    # An adapter that is not finite is its own rows' trouble: 0 * NaN would make it everyone's.
    sound = jnp.all(jnp.isfinite(bank.b), axis=(1, 2))  # [adapters]
    delta = product(shrunk, jnp.where(sound[:, None, None], bank.b, 0), ((1, 2), (0, 2)))
    return jnp.where(jnp.any(own & ~sound, axis=1)[:, None], jnp.nan, delta)


def _one_by_one(x: jax.Array, bank: LoRABank, adapter_ids: jax.Array) -> jax.Array:
    adapters = bank.a.shape[0]

    def one_adapter(rows: jax.Array, adapter: jax.Array) -> jax.Array:
        a, b = (lax.dynamic_index_in_dim(side, adapter, keepdims=False) for side in (bank.a, bank.b))
        return product(product(rows, a, ((1,), (1,))).astype(x.dtype), b, ((1,), (1,)))

    ids = jnp.where(adapter_ids < 0, adapters, adapter_ids)
    sources = jnp.arange(len(ids), dtype=jnp.int32)
    return by_group(x, sources, ids, adapters, bank.b.shape[1], one_adapter)
