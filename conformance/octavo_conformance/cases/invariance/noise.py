"""The sampler's noise on the device: a function of seed, position and vocabulary id, the same bits everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.random import random_bits, uniform
from octavo_conformance.case import Case
from octavo_conformance.workbench import Workbench

Int32Array = NDArray[np.int32]

_BORDERS = (0, 1, -1, 2, -2, 127, 128, 2**16, -(2**16), 2**31 - 1, -(2**31), -(2**31) + 1, 0x55555555)


def cases() -> Iterator[Case]:
    for kind in ("bits", "uniform"):
        yield Case(f"invariance/noise/{kind}/borders", partial(_borders, kind), quick=True)
        yield Case(f"invariance/noise/{kind}/vocabulary", partial(_vocabulary, kind), quick=True)
        yield Case(f"invariance/noise/{kind}/ids_by_row", partial(_ids_by_row, kind), quick=True)


def _borders(kind: str, bench: Workbench) -> None:
    """Integer arithmetic that wraps around and shifts that do not copy the sign, at both ends of int32."""
    seeds, positions = (array.ravel().astype(np.int32) for array in np.meshgrid(_BORDERS, _BORDERS))
    _check(bench, kind, seeds, positions, np.array(_BORDERS, np.int32), "the borders of int32")


def _vocabulary(kind: str, bench: Workbench) -> None:
    seeds = bench.rng.integers(-(2**31), 2**31, 8).astype(np.int32)
    positions = bench.rng.integers(0, 2**20, 8).astype(np.int32)
    _check(bench, kind, seeds, positions, np.arange(-385, 49152, 7, dtype=np.int32), "ids of a vocabulary of 49152")


def _ids_by_row(kind: str, bench: Workbench) -> None:
    seeds, positions = (bench.rng.integers(-(2**31), 2**31, 16).astype(np.int32) for _ in range(2))
    ids = bench.rng.integers(-500, 10**6, (16, 64)).astype(np.int32)
    _check(bench, kind, seeds, positions, ids, "each row with ids of its own")


def _check(bench: Workbench, kind: str, seeds: Int32Array, positions: Int32Array, ids: Int32Array, what: str) -> None:
    function, oracle = (random_bits, _bits) if kind == "bits" else (uniform, _uniform)
    arrays: list[Any] = [bench.device.upload(array.copy()) for array in (seeds, positions, ids)]
    came = bench.device.download(function(*arrays))
    note = f"{what}; {len(seeds)} rows; int32 arithmetic on the device has to wrap around"
    bench.check_equal(f"noise ({kind})", came, oracle(seeds, positions, ids), note)


# ---------------------------------------------------------------------------------------------------------- oracles


def _bits(seeds: Int32Array, positions: Int32Array, ids: Int32Array) -> Int32Array:
    """`random_bits` in unsigned arithmetic of 64 bits, where nothing wraps around by itself."""
    key = _mix(_wide(positions) * 0x9E3779B1 + _mix(_wide(seeds)))
    mixed = _mix((_wide(ids) * 0x9E3779B1 & _LOW ^ key[:, None]) + 0x7F4A7C15)
    return mixed.astype(np.uint32).view(np.int32)


def _uniform(seeds: Int32Array, positions: Int32Array, ids: Int32Array) -> NDArray[np.float32]:
    """The midpoints of 2^23 intervals, exact in float64 and in float32."""
    upper = _bits(seeds, positions, ids).view(np.uint32) >> np.uint32(9)
    return ((upper.astype(np.float64) + 0.5) / 2.0**23).astype(np.float32)


_LOW = np.uint64(0xFFFFFFFF)


def _wide(values: Int32Array) -> NDArray[np.uint64]:
    return values.view(np.uint32).astype(np.uint64)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3."""
    h = h & _LOW
    h = (h ^ h >> np.uint64(16)) * np.uint64(0x85EBCA6B) & _LOW
    h = (h ^ h >> np.uint64(13)) * np.uint64(0xC2B2AE35) & _LOW
    return h ^ h >> np.uint64(16)
