"""Faults of the operations that the sampler is made of: top_k and scatter_add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from octavo.backend import Ops
from octavo_wrong.fault import Fault, in_ops

Array = Any


def faults() -> Iterator[Fault]:
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
