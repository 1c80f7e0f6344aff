"""What the sampler asks of a device: the best entries of a row, probabilities in units, and edits of logits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

_UNITS = 1 << 30  # of `probability_units`: the probability 1
_LANES = 128  # columns that a row's weights are folded to before the columns are added up

_LN2 = (355 / 512, math.log(2) - 355 / 512)  # in two parts: up to 126 times the first is exact in float32
_TERMS = tuple(1 / math.factorial(power) for power in range(7, -1, -1))  # of the series: 5e-9 at ln(2) / 2
_SMALLEST = -87.0  # e^x is a normal number down to here


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Values and int32 indices [rows, k], among equal entries the lowest index first."""
    # 0.0 and -0.0 are equal, and XLA's order puts one before the other.
    values, indices = lax.top_k(jnp.where(x == 0, jnp.zeros_like(x), x), k)
    return values, indices.astype(jnp.int32)


def probability_units(x: jax.Array, temperatures: jax.Array) -> jax.Array:
    """softmax(x / temperature) in units of 2^-30, int32 [rows, n]; see `Ops.probability_units`.

    The sum is a tree of additions whose shape n alone decides: a reduction of XLA's may take another order for another
    number of rows. The exponential is our own for the same reason: see `_exp`.
    """
    rows, n = x.shape
    peaks = jnp.max(x, axis=-1, keepdims=True)
    weights = _exp((x - peaks) / temperatures[:, None])
    folded = jnp.pad(weights, ((0, 0), (0, -n % _LANES))).reshape(rows, -1, _LANES)
    totals = _tree_sum(_tree_sum(folded))  # [rows]
    return jnp.round(weights * (_UNITS / totals)[:, None]).astype(jnp.int32)


def scatter_add(x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """x [rows, n] with values [rows, e] added at ids [rows, e]; repeated ids add up."""
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    return x.at[rows, ids].add(values, mode="drop")


def _exp(x: jax.Array) -> jax.Array:
    """e^x for x of 0 and less, 0 below _SMALLEST: 2^k * e^r with |r| <= ln(2) / 2 (Cody and Waite 1980).

    XLA:CPU's exp has other bits at the end of a loop, where what is left does not fill a vector, so an entry's would
    depend on its place in the batch. Additions and multiplications have the same everywhere.
    """
    bounded = jnp.maximum(x, _SMALLEST)
    k = jnp.round(bounded / math.log(2))
    r = (bounded - k * _LN2[0]) - k * _LN2[1]
    series = jnp.full_like(r, _TERMS[0])
    for term in _TERMS[1:]:
        series = series * r + term
    power = lax.bitcast_convert_type((k.astype(jnp.int32) + 127) << 23, jnp.float32)
    return jnp.where(x < _SMALLEST, 0.0, series * power)


def _tree_sum(x: jax.Array) -> jax.Array:
    """Sum over axis 1 by halves."""
    while (length := x.shape[1]) > 1:
        half = length // 2
        pairs = x[:, :half] + x[:, half : 2 * half]
        x = pairs if length % 2 == 0 else jnp.concatenate([pairs, x[:, 2 * half :]], axis=1)
    return x[:, 0]
