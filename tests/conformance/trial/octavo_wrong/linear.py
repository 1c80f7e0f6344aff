"""Faults of `linear`, with dense and with quantized weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import Ops, QuantizedWeight, Weight
from octavo_wrong.fault import Fault, in_ops
from octavo_wrong.plain import tensor_float

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "linear",
        BiasDropped,
        RowsBeyondTileDropped,
        InputsBeyondTileDropped,
        SumInLowPrecision,
        ProductsInTensorFloat,
        ScaledByBatchMaximum,
        ResultInFloat32,
        ResultShared,
        OrderOfSumRandom,
        OffsetsDropped,
        OffsetsScaled,
        NibblesSwapped,
        PermutationIgnored,
        PermutationInverted,
        CodebookIgnored,
        ScalesOfNeighbourGroup,
        ScalesInFloat16,
        GroupSizeAssumed,
        CodesSigned,
    )


# ----------------------------------------------------------------------------------------------------------- linear


class _WrongWeight(Ops):
    """The right operations on the wrong weight; experts go through `linear`, one by one."""

    def linear(self, x: Array, weight: Weight) -> Array:
        return super().linear(x, self.wrong(weight))

    def embedding(self, ids: Array, weight: Weight) -> Array:
        return super().embedding(ids, self.wrong(weight))

    def wrong(self, weight: Weight) -> Weight:
        return self.wrongly_quantized(weight) if isinstance(weight, QuantizedWeight) else weight

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        raise NotImplementedError


class BiasDropped(_WrongWeight):
    """The bias is not added."""

    def wrong(self, weight: Weight) -> Weight:
        return replace(weight, bias=None)


class RowsBeyondTileDropped(Ops):
    """Of more than 8 rows those beyond a multiple of 8 come back as 0."""

    def linear(self, x: Array, weight: Weight) -> Array:
        right = super().linear(x, weight)
        if len(x) > 8:
            right[len(x) // 8 * 8 :] = 0
        return right


class InputsBeyondTileDropped(Ops):
    """Of more than 32 inputs those beyond a multiple of 32 do not enter the sums."""

    def linear(self, x: Array, weight: Weight) -> Array:
        size = x.shape[-1]
        if size > 32 and size % 32:
            x = x.copy()
            x[..., size // 32 * 32 :] = 0
        return super().linear(x, weight)


class SumInLowPrecision(Ops):
    """Products are summed in the dtype of x: after each 16 inputs the sum is rounded to it."""

    def linear(self, x: Array, weight: Weight) -> Array:
        if x.dtype.itemsize > 2 or isinstance(weight, QuantizedWeight):
            return super().linear(x, weight)
        array = weight.array.astype(np.float32)
        total = np.zeros((len(x), len(array)), x.dtype)
        for start in range(0, x.shape[-1], 16):
            part = slice(start, start + 16)
            total = (total.astype(np.float32) + x[:, part].astype(np.float32) @ array[:, part].T).astype(x.dtype)
        return total if weight.bias is None else total + weight.bias.astype(x.dtype)


class ProductsInTensorFloat(Ops):
    """float32 inputs keep 10 bits of their mantissa, as matrix units take them unasked."""

    def linear(self, x: Array, weight: Weight) -> Array:
        return super().linear(tensor_float(x), weight)


class ScaledByBatchMaximum(Ops):
    """x is divided by the largest entry of the whole step, and the result multiplied: NaN in one row is in all."""

    def linear(self, x: Array, weight: Weight) -> Array:
        largest = np.abs(x.astype(np.float32)).max(initial=0.0)
        exponent = np.exp2(np.floor(np.log2(largest))) if largest > 0 else largest * 0 + np.float32(1)
        with np.errstate(invalid="ignore"):
            unit = np.asarray(exponent, np.float32) / exponent  # 1, or NaN
            return super().linear((x.astype(np.float32) * unit).astype(x.dtype), weight)


class ResultInFloat32(Ops):
    """Results are float32 whatever the dtype of x: 16-bit dtypes are claimed and not computed in."""

    def linear(self, x: Array, weight: Weight) -> Array:
        return super().linear(x.astype(np.float32), weight)


class ResultShared(Ops):
    """Results of one shape are written to one buffer, which the next call writes to again."""

    def __init__(self) -> None:
        self._buffers: dict[Any, Array] = {}

    def linear(self, x: Array, weight: Weight) -> Array:
        right = super().linear(x, weight)
        buffer = self._buffers.setdefault((right.shape, right.dtype), right)
        buffer[...] = right
        return buffer


class OrderOfSumRandom(Ops):
    """The products are summed in an order that differs from call to call, as atomic additions come."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)  # another order in each call, the same ones in each run

    def linear(self, x: Array, weight: Weight) -> Array:
        if isinstance(weight, QuantizedWeight):
            return super().linear(x, weight)
        order = self._rng.permutation(x.shape[-1])
        return super().linear(x[..., order], replace(weight, array=weight.array[:, order]))


class OffsetsDropped(_WrongWeight):
    """The offsets of a quantized weight, its zero points, are left out."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return replace(weight, offsets=None)


class OffsetsScaled(_WrongWeight):
    """The offsets are multiplied by the scales, as zero points that are counted in codes would be."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return weight if weight.offsets is None else replace(weight, offsets=weight.offsets * weight.scales)


class NibblesSwapped(_WrongWeight):
    """Of two 4-bit codes in a byte the even input's is taken from the high nibble."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return replace(weight, codes=weight.codes >> 4 | weight.codes << 4) if weight.bits == 4 else weight


class PermutationIgnored(_WrongWeight):
    """The columns of a permuted weight are taken in the order in which they are stored."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return replace(weight, permutation=None)


class PermutationInverted(_WrongWeight):
    """The inverse of the permutation is applied."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        if weight.permutation is None:
            return weight
        return replace(weight, permutation=np.argsort(weight.permutation).astype(np.int32))


class CodebookIgnored(_WrongWeight):
    """Codes are taken for numbers where a codebook is given."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return replace(weight, codebook=None)


class ScalesOfNeighbourGroup(_WrongWeight):
    """Each group of inputs takes the scale of the next one."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        return replace(weight, scales=np.roll(weight.scales, -1, axis=-1))


class ScalesInFloat16(_WrongWeight):
    """float32 scales are rounded to float16."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        if weight.scales.dtype != np.float32:
            return weight
        return replace(weight, scales=weight.scales.astype(np.float16).astype(np.float32))


class GroupSizeAssumed(_WrongWeight):
    """Groups are taken to be 32 inputs long, and the last scale goes on where there are too few."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        groups = weight.scales.shape[-1] * weight.group_size // 32
        chosen = np.minimum(np.arange(groups), weight.scales.shape[-1] - 1)
        offsets = None if weight.offsets is None else weight.offsets[..., chosen]
        return replace(weight, scales=weight.scales[..., chosen], offsets=offsets, group_size=32)


class CodesSigned(_WrongWeight):
    """8-bit codes are taken for signed numbers."""

    def wrongly_quantized(self, weight: QuantizedWeight) -> Weight:
        if weight.bits != 8 or weight.codes.dtype != np.uint8:
            return weight
        return replace(weight, codes=weight.codes.view(np.int8).astype(np.float32))
