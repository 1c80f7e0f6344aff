"""Projections and embeddings, of dense and of quantized weights.

A dense weight is multiplied as it is stored, [out, in]: transposed to [in, out] it is no faster on XLA:CPU (1 to 512
rows), and a TPU's compiler chooses its own layout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from octavo.backend import QuantizedWeight, Weight
from octavo_xla.ops import quantized
from octavo_xla.ops.prepare import TransposedWeight, transposed
from octavo_xla.ops.products import product


def embedding(ids: jax.Array, weight: Weight) -> jax.Array:
    """Rows of a table; see `Ops.embedding`."""
    if isinstance(weight, QuantizedWeight | TransposedWeight):
        return quantized.rows(ids, weight)
    return jnp.take(weight.array, ids, axis=0, mode="clip")


def linear(x: jax.Array, weight: Weight) -> jax.Array:
    """x @ W.T + bias in x's dtype, accumulated in float32; see `Ops.linear`."""
    if isinstance(weight, QuantizedWeight):
        weight = transposed(weight)
    if isinstance(weight, TransposedWeight):
        y = quantized.multiply(x, weight)
    else:
        y = product(x, weight.array, ((1,), (1,)))
    if weight.bias is not None:
        y = y + weight.bias.astype(jnp.float32)
    return y.astype(x.dtype)
