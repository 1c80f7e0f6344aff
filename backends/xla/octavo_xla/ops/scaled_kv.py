"""Rows of a KV cache of eight bits: numbers of int8 or float8 with a scale for each token, head and side.

The largest entry of a head lands on the dtype's largest number, so nothing overflows and nothing is calibrated. The
dtype of eight bits itself is the one of Micikevicius et al. 2022, or plain int8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def largest_number(dtype: jnp.dtype) -> float:
    """The largest finite number of a cache dtype of eight bits; int8 is used symmetrically, to 127."""
    return 127.0 if dtype == jnp.int8 else float(jnp.finfo(dtype).max)


def encode(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """x [..., head_size] -> (codes in `dtype`, scales float32 [...]), x being about codes * scales.

    A head of zeros has scale 1, and so has one too small for the inverse of its scale to be finite: it is stored as
    zeros. An entry that is not finite makes the scale NaN: whoever reads the head sees it.
    """
    wide = x.astype(jnp.float32)
    limit = largest_number(dtype)
    largest = jnp.max(jnp.abs(wide), axis=-1)
    finite = largest < jnp.inf  # false for NaN as well
    safe = jnp.where(finite & (largest > 1e-30), largest, limit)
    scales = jnp.where(finite, safe / limit, jnp.nan)
    codes = jnp.where(finite[..., None], wide * (limit / safe)[..., None], 0.0)
    codes = jnp.clip(codes, -limit, limit)  # the product may be rounded beyond the largest number, which float8 has not
    if dtype == jnp.int8:
        codes = jnp.round(codes)
    return codes.astype(dtype), scales
