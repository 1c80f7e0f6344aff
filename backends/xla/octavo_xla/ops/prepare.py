"""The layout in which quantized weights are kept on the device; dense ones stay as they are stored.

Codes are transposed to [in, out]. Their groups then lie along the rows, and the two codes of a byte belong to two
inputs and not to two neighbouring lanes: XLA unpacks and scales them while it reads them for the product. As stored,
[out, in], it writes the whole matrix out first.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from octavo.backend import Array, QuantizedWeight, Weight, WeightRole


@dataclass(frozen=True, slots=True)
class TransposedWeight:
    """A `QuantizedWeight` whose matrices are transposed; the fields mean what they mean there.

    codes [in, out], with bits == 4 and uint8 [in // 2, out]: two inputs a byte, the even one in the low nibble.
    scales, offsets [in // group_size, out]. All but codebook may carry a leading [experts] axis.
    """

    codes: Array
    scales: Array
    offsets: Array | None
    bits: int
    group_size: int
    codebook: Array | None = None
    permutation: Array | None = None
    bias: Array | None = None


def prepare(weight: Weight, role: WeightRole) -> Weight:
    """A weight in the layout that `XlaOps` want for its role.

    Traceable: it transposes the last two axes and nothing else, so sharded arrays stay sharded, along the other axis.
    """
    if not isinstance(weight, QuantizedWeight) or role is WeightRole.EMBEDDING:
        return weight
    return transposed(weight)


def transposed(weight: QuantizedWeight) -> TransposedWeight:
    """The same matrix, transposed."""
    return TransposedWeight(
        codes=jnp.swapaxes(weight.codes, -1, -2),
        scales=jnp.swapaxes(weight.scales, -1, -2),
        offsets=None if weight.offsets is None else jnp.swapaxes(weight.offsets, -1, -2),
        bits=weight.bits,
        group_size=weight.group_size,
        codebook=weight.codebook,
        permutation=weight.permutation,
        bias=weight.bias,
    )
