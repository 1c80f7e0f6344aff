"""Norm, rotary embedding and gated activation: what XLA fuses by itself into the operations around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax

from octavo.backend import Activation, RotaryTable

_ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        Activation.SILU: jax.nn.silu,
        Activation.GELU: partial(jax.nn.gelu, approximate=False),
        Activation.GELU_TANH: partial(jax.nn.gelu, approximate=True),
        Activation.RELU: jax.nn.relu,
    }
)


def rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, residual: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(normed, sum), both [..., hidden]; see `Ops.rms_norm`. The sum is rounded to its dtype before it is normed."""
    total = x if residual is None else x + residual
    wide = total.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype), total


def rotary(x: jax.Array, positions: jax.Array, table: RotaryTable) -> jax.Array:
    """One of q and k, [tokens, heads, head_size]; see `Ops.rotary`. Computed in float32 and rounded once."""
    size = table.cos_sin.shape[-1]
    rows = jnp.take(table.cos_sin, positions, axis=0, mode="clip")[:, None, :]  # [tokens, 1, rotary_size]
    cos, sin = rows[..., : size // 2], rows[..., size // 2 :]
    turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
    if table.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : size // 2], turned[..., size // 2 :]
    first, second = first * cos - second * sin, second * cos + first * sin
    if table.interleaved:
        turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)
    else:
        turned = jnp.concatenate([first, second], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def gated_activation(x: jax.Array, kind: Activation) -> jax.Array:
    """activation(gate) * up in float32: [..., 2 * intermediate] -> [..., intermediate]."""
    half = x.shape[-1] // 2
    gate, up = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return (_ACTIVATIONS[kind](gate) * up).astype(x.dtype)
