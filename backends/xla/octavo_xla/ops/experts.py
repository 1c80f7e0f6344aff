"""Mixture of experts: tokens sorted by expert, tiles of each expert's tokens through its two projections."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from octavo.backend import ExpertWeights, QuantizedWeight, Weight
from octavo_xla.ops.elementwise import gated_activation
from octavo_xla.ops.groups import by_group
from octavo_xla.ops.linear import linear
from octavo_xla.ops.prepare import transposed
from octavo_xla.ops.sampling import top_k as largest

_SHARED = ("codebook",)  # by all experts: the only array without an axis of experts


def mixture_of_experts(x: jax.Array, router_logits: jax.Array, experts: ExpertWeights, top_k: int) -> jax.Array:
    """Each token through its top_k experts; see `Ops.mixture_of_experts`."""
    tokens, hidden = x.shape
    gate_up, down = _prepared(experts.gate_up), _prepared(experts.down)
    shares, chosen = _routed(router_logits, top_k, experts.renormalize)

    def one_expert(rows: jax.Array, expert: jax.Array) -> jax.Array:
        inner = gated_activation(linear(rows, _slice(gate_up, expert)), experts.activation)
        return linear(inner, _slice(down, expert))

    sources = jnp.arange(tokens * top_k, dtype=jnp.int32) // top_k
    outputs = by_group(x, sources, chosen.reshape(-1), router_logits.shape[-1], hidden, one_expert)
    return jnp.sum(outputs.reshape(tokens, top_k, hidden) * shares[..., None], axis=1).astype(x.dtype)


def _routed(router_logits: jax.Array, top_k: int, renormalize: bool) -> tuple[jax.Array, jax.Array]:
    """Shares float32 and experts int32, both [tokens, top_k]."""
    logits = router_logits.astype(jnp.float32)
    _, chosen = largest(logits, top_k)  # of the logits: different ones may have the same probability, 0
    shares = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), chosen, axis=-1, mode="clip")
    if renormalize:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen


def _prepared(weight: Weight) -> Weight:
    return transposed(weight) if isinstance(weight, QuantizedWeight) else weight


def _slice(weight: Weight, expert: jax.Array) -> Weight:
    """One expert's weight."""

    def taken(name: str) -> Any:
        side = getattr(weight, name)
        if not isinstance(side, jax.Array) or name in _SHARED:
            return side
        return lax.dynamic_index_in_dim(side, expert, keepdims=False)

    return replace(weight, **{field.name: taken(field.name) for field in fields(weight)})
