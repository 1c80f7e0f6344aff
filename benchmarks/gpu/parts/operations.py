"""The device's ceilings, and each operation of the backend beside them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from benchmarks.gpu import attention, ceilings, kernels
from benchmarks.gpu.part import Measurement
from benchmarks.gpu.scale import Scale


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    return chain(ceilings.measurements(), attention.measurements(scale), kernels.measurements(scale))
