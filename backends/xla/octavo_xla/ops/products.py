"""Matrix products with the precision that the contract asks for, on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Axes = tuple[int, ...]


def product(left: jax.Array, right: jax.Array, contracted: tuple[Axes, Axes], batch: Axes = ()) -> jax.Array:
    """`lax.dot_general` summed in float32, float32 [batch, rest of left, rest of right].

    contracted: the axes of left and of right that are summed over. batch: axes that both have, in the same place.
    Operands of one dtype of 16 bits are multiplied as they are; all others as float32.
    """
    if left.dtype != right.dtype or left.dtype.itemsize != 2:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    # A TPU's default rounds operands to bfloat16, which costs nothing where they are.
    precise = lax.Precision.DEFAULT if left.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    dimensions = (contracted, (batch, batch))
    return lax.dot_general(left, right, dimensions, precision=precise, preferred_element_type=jnp.float32)
