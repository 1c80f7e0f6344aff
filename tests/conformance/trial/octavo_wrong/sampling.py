"""Faults of the operations that the sampler is made of: probability_units, top_k and scatter_add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from octavo.backend import Ops
from octavo_wrong.fault import Fault, in_ops

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "probability_units", TemperatureIgnored, LargestNotSubtracted, UnitsCutOff, SumByBatch, SumInFloat16
    )
    yield from in_ops(
        "top_k",
        TiesToHighestIndex,
        Unordered,
        OrderedByIndex,
        AtMostThirtyTwo,
        KeysOfSixteenBits,
        IndicesInSixteenBits,
        IndicesInInt64,
        InfinityIsTheEnd,
    )
    yield from in_ops("scatter_add", RepeatedIdsOverwrite, ScattersInPlace)


class TemperatureIgnored(Ops):
    """Every row is drawn from at temperature 1."""

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        return super().probability_units(x, np.ones_like(temperatures))


class LargestNotSubtracted(Ops):
    """exp of the logits as they are, which overflows."""

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        weights = np.exp(x / temperatures[:, None])
        return _units(weights, weights.sum(axis=-1))


class UnitsCutOff(Ops):
    """What lies behind the point is cut off and not rounded: half of the rare tokens lose their only unit."""

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        weights = _weights(x, temperatures)
        return (weights * (_ONE / weights.sum(axis=-1))[:, None]).astype(np.int32)


class SumByBatch(Ops):
    """A row in company is summed from right to left: other bits than it has alone."""

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        weights = _weights(x, temperatures)
        return _units(weights, (weights if len(x) == 1 else weights[:, ::-1].copy()).sum(axis=-1))


class SumInFloat16(Ops):
    """The weights of a row are summed as float16."""

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        weights = _weights(x, temperatures)
        return _units(weights, weights.astype(np.float16).sum(axis=-1).astype(np.float32))


_ONE = np.float32(1 << 30)


def _weights(x: Array, temperatures: Array) -> Array:
    return np.exp((x - x.max(axis=-1, keepdims=True)) / temperatures[:, None])


def _units(weights: Array, totals: Array) -> Array:
    return np.rint(weights * (_ONE / totals)[:, None]).astype(np.int32)


class TiesToHighestIndex(Ops):
    """Among equal entries the highest index comes first."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(np.ascontiguousarray(x[..., ::-1]), k)
        return values, (x.shape[-1] - 1 - order).astype(np.int32)


class Unordered(Ops):
    """The k largest come in the order in which a partition leaves them."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(x, k)
        return np.roll(values, 1, axis=-1), np.roll(order, 1, axis=-1)


class OrderedByIndex(Ops):
    """The k largest come in the order of their indices."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        _, order = super().top_k(x, k)
        order = np.sort(order, axis=-1)
        return np.take_along_axis(x, order, axis=-1), order


class AtMostThirtyTwo(Ops):
    """Beyond the 32 largest the result repeats the last of them."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(x, k)
        if k > 32:
            values[..., 32:], order[..., 32:] = values[..., 31:32], order[..., 31:32]
        return values, order


class KeysOfSixteenBits(Ops):
    """Entries are compared by their first 16 bits."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        _, order = super().top_k((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), k)
        return np.take_along_axis(x, order, axis=-1), order


class IndicesInSixteenBits(Ops):
    """Indices are kept in 16 bits: 65536 + n comes as n."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(x, k)
        return values, order & 0xFFFF


class IndicesInInt64(Ops):
    """Indices come as int64."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(x, k)
        return values, order.astype(np.int64)


class InfinityIsTheEnd(Ops):
    """An entry of -inf is taken for an empty place: its index is 0."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, order = super().top_k(x, k)
        return values, np.where(values == -np.inf, np.int32(0), order)


class RepeatedIdsOverwrite(Ops):
    """Of several values for one id the last is added alone."""

    def scatter_add(self, x: Array, ids: Array, values: Array) -> Array:
        result, rows = x.copy(), np.arange(len(x))[:, None]
        result[rows, ids] = x[rows, ids] + values
        return result


class ScattersInPlace(Ops):
    """The values are added to the argument itself."""

    def scatter_add(self, x: Array, ids: Array, values: Array) -> Array:
        x[...] = super().scatter_add(x, ids, values)
        return x
