"""Faults of how an operation behaves: it fails, ends its process, does not end, or reads what it was not given."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from octavo.backend import Ops, RotaryTable, Weight
from octavo_conformance.case import Level
from octavo_wrong.fault import Fault, in_device, in_ops
from octavo_wrong.plain import from_first

Array = Any


SLICED = "Cases hand over arrays as they were uploaded; slices of a fused projection come from a model."


def faults() -> Iterator[Fault]:
    yield from in_ops("top_k", Raises)
    yield in_device("rotary", Level.STEP, ops=RotaryOfWholeArrays, above_ops=SLICED)
    yield in_device("rms_norm", Level.STEP, ops=NormOfWholeArrays, above_ops=SLICED)
    yield from in_ops("linear", Aborts, Hangs, fatal=True)


class Raises(Ops):
    """top_k of a single row raises."""

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        if len(x) == 1:
            raise RuntimeError("no launch configuration for a grid of one")
        return super().top_k(x, k)


class RotaryOfWholeArrays(Ops):
    """rotary ignores the strides of a slice: it reads as many entries from the first one on."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return super().rotary(from_first(q), from_first(k), positions, table)


class NormOfWholeArrays(Ops):
    """rms_norm ignores the strides of a slice: it reads as many entries from the first one on."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return super().rms_norm(from_first(x), weight, eps, residual)


class Aborts(Ops):
    """linear from two rows to 33 outputs ends the process."""

    def linear(self, x: Array, weight: Weight) -> Array:
        right = super().linear(x, weight)
        if right.shape == (2, 33):
            os.abort()
        return right


class Hangs(Ops):
    """linear from two rows to 33 outputs never ends."""

    def linear(self, x: Array, weight: Weight) -> Array:
        right = super().linear(x, weight)
        while right.shape == (2, 33):
            time.sleep(1.0)
        return right
