"""Products with quantized weights, and rows of quantized tables."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp

from octavo.backend import QuantizedWeight
from octavo_xla.ops.prepare import TransposedWeight
from octavo_xla.ops.products import product

_SELECTED_BITS = 4
"""Code books of at most 2^4 numbers are looked up by selections, which XLA fuses; larger ones by a gather."""


def multiply(x: jax.Array, weight: TransposedWeight) -> jax.Array:
    """x [tokens, in] times the matrix, float32 [tokens, out], without the bias.

    The product is the sum of two, over inputs of one half each. XLA fuses the dequantization into the operands of such
    a sum; of a single product on a TPU it keeps the whole matrix in float32 (64 MiB for one of 4096 x 4096).
    """
    if weight.permutation is not None:
        x = jnp.take(x, weight.permutation, axis=-1, mode="clip")
    parts = _nibbles(x, weight) if _packed(weight.codes, weight.bits) else _halves(x, weight)
    return sum(_part(*part, weight.codebook, weight.bits) for part in parts)


def rows(ids: jax.Array, weight: QuantizedWeight | TransposedWeight) -> jax.Array:
    """Rows of the matrix as `Ops.embedding` has them: ids int32 [tokens] -> [tokens, in], in the scales' dtype."""
    axis = 1 if isinstance(weight, TransposedWeight) else 0

    def taken(side: jax.Array) -> jax.Array:
        entries = jnp.take(side, ids, axis=axis, mode="clip")
        return entries.T if axis == 1 else entries

    codes = taken(weight.codes)
    if _packed(codes, weight.bits):
        codes = jnp.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], -1)
    values = _values(codes, weight.codebook, weight.bits)
    grouped = values.reshape(values.shape[0], -1, weight.group_size)
    grouped = grouped * taken(weight.scales).astype(jnp.float32)[..., None]
    if weight.offsets is not None:
        grouped = grouped + taken(weight.offsets).astype(jnp.float32)[..., None]
    matrix = grouped.reshape(values.shape)
    if weight.permutation is not None:  # column i belongs to input permutation[i]
        matrix = jnp.zeros_like(matrix).at[:, weight.permutation].set(matrix, unique_indices=True, mode="drop")
    return matrix.astype(weight.scales.dtype)


# ------------------------------------------------------------------------------------------------------------ parts

_Part = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]
"""Some of the inputs x [tokens, n], and their codes [n, out], scales and offsets [groups, out]."""


def _nibbles(x: jax.Array, weight: TransposedWeight) -> list[_Part]:
    """The even inputs, whose codes are the low nibbles, and the odd ones: half of each group."""
    low, high = weight.codes & 15, weight.codes >> 4
    return [(side, codes, weight.scales, weight.offsets) for side, codes in ((x[:, 0::2], low), (x[:, 1::2], high))]


def _halves(x: jax.Array, weight: TransposedWeight) -> list[_Part]:
    """The first half of the groups, and the others. A matrix of a single group is one part."""
    groups = weight.scales.shape[0]
    borders = [0, groups // 2, groups] if groups > 1 else [0, groups]
    parts = []
    for first, last in pairwise(borders):
        inputs, mine = slice(first * weight.group_size, last * weight.group_size), slice(first, last)
        offsets = None if weight.offsets is None else weight.offsets[mine]
        parts.append((x[:, inputs], weight.codes[inputs], weight.scales[mine], offsets))
    return parts


def _part(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    codebook: jax.Array | None,
    bits: int,
) -> jax.Array:
    """x times the matrix of some inputs, which is rounded to x's dtype: matrix units take two operands of one."""
    values = _values(codes, codebook, bits).reshape(scales.shape[0], -1, codes.shape[1])
    matrix = values * scales.astype(jnp.float32)[:, None]
    if offsets is not None:
        matrix = matrix + offsets.astype(jnp.float32)[:, None]
    return product(x, matrix.reshape(codes.shape).astype(x.dtype), ((1,), (0,)))


# ------------------------------------------------------------------------------------------------------------ codes


def _packed(codes: jax.Array, bits: int) -> bool:
    """Whether a byte holds two codes."""
    return bits == 4 and codes.dtype == jnp.uint8


def _values(codes: jax.Array, codebook: jax.Array | None, bits: int) -> jax.Array:
    """What codes stand for before scale and offset, float32."""
    if codebook is None:
        return codes.astype(jnp.float32)
    if bits > _SELECTED_BITS:
        return jnp.take(codebook, codes.astype(jnp.int32), mode="clip").astype(jnp.float32)
    entries = [codebook[code].astype(jnp.float32) for code in range(2**bits)]
    for bit in range(bits):  # the lowest first: each halves what is left to choose from
        chosen = (codes >> bit & 1).astype(jnp.bool_)
        entries = [jnp.where(chosen, odd, even) for even, odd in zip(entries[0::2], entries[1::2], strict=True)]
    return entries[0]
