"""Probabilities of a vocabulary as integers, in units of 2^-30: two launches, for one row as for hundreds.

Each row is cut into parts. The first launch takes every part's maximum, and the sum of its weights relative to that
maximum; in the second, each program merges the sums of its row, rescaled to the row's maximum as in an online softmax
(Milakov and Gimelshein 2018), and writes the units of one part. Parts and the order of all sums depend on the
vocabulary alone, never on how many rows there are, so a row's units are the same bits in any batch.

256 rows of 128,256 float32 logits: each launch is 16,128 programs; 131 MB are read twice and 131 MB written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable("probability_units", facts=("n",), defaults={"part": 2048, "num_warps": 4})
"""part: entries of a row that one program reads, a power of two. What is chosen may depend on n and on nothing of the
batch."""


def probability_units(runtime: KernelRuntime, x: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """`Ops.probability_units`: int32 [rows, n]. x float32 [rows, n], the last axis contiguous."""
    rows, n = x.shape
    tuned = runtime.tuned(TUNABLE, n=n)
    part = min(tuned["part"], triton.next_power_of_2(n))
    parts = triton.cdiv(n, part)
    maxima, sums = (torch.empty((rows, parts), dtype=torch.float32, device=x.device) for _ in range(2))
    units = torch.empty((rows, n), dtype=torch.int32, device=x.device)
    shared = {
        "x": x,
        "temperatures": temperatures,
        "maxima": maxima,
        "sums": sums,
        "x_stride": x.stride(0),
        "ENTRIES": n,
        "PARTS": parts,
        "PART": part,
    }
    grid, warps = (rows * parts,), tuned["num_warps"]
    runtime.launch(_sum_kernel, grid, shared, num_warps=warps)
    columns = triton.next_power_of_2(parts)
    runtime.launch(_write_kernel, grid, {**shared, "units": units, "COLUMNS": columns}, num_warps=warps)
    return units


def cost(rows: int, n: int) -> Cost:
    """Of one call: an exponential, a sum and three more operations an entry."""
    return Cost(read=rows * (n + 1) * 4, written=rows * n * 4, flops=5 * rows * n)


@triton.jit
def _sum_kernel(
    x,
    temperatures,
    maxima,
    sums,
    x_stride,
    ENTRIES: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    index = part * PART + tl.arange(0, PART)
    value = tl.load(x + row * x_stride + index, mask=index < ENTRIES, other=float("-inf"))
    largest = tl.max(value, 0)
    # Where nothing of the part is finite, -inf less -inf would be NaN; less 0 its weights are 0.
    total = tl.sum(_weight(value, tl.where(largest == float("-inf"), 0.0, largest), _steepness(temperatures + row)), 0)
    tl.store(maxima + row * PARTS + part, largest)
    tl.store(sums + row * PARTS + part, total)


@triton.jit
def _write_kernel(
    x,
    temperatures,
    maxima,
    sums,
    units,
    x_stride,
    ENTRIES: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    steepness = _steepness(temperatures + row)
    part = tl.arange(0, COLUMNS)
    there = part < PARTS
    largest = tl.load(maxima + row * PARTS + part, mask=there, other=float("-inf"))
    peak = tl.max(largest, 0)
    total = tl.sum(tl.load(sums + row * PARTS + part, mask=there, other=0.0) * _weight(largest, peak, steepness), 0)
    index = tl.program_id(0) % PARTS * PART + tl.arange(0, PART)
    inside = index < ENTRIES
    value = tl.load(x + row * x_stride + index, mask=inside, other=float("-inf"))
    share = _weight(value, peak, steepness) * tl.div_rn(1073741824.0, total)  # 2^30
    tl.store(units + row * ENTRIES + index, _nearest(share), mask=inside)


@triton.jit
def _weight(x, peak, steepness):
    """exp((x - peak) / temperature)."""
    return tl.exp2((x - peak) * steepness)


@triton.jit
def _steepness(temperature):
    """1 / (temperature * ln 2), of one row, for powers of two. Finite: times 0, of the largest entry, it is 0."""
    return tl.minimum(tl.div_rn(1.4426950408889634, tl.load(temperature)), 3.0e38)


@triton.jit
def _nearest(x):
    """The integer next to x, 0 <= x < 2^31. What x + 0.5 does not do: it rounds, where float32 counts by ones."""
    whole = x.to(tl.int32)
    return whole + (x - whole.to(tl.float32) >= 0.5).to(tl.int32)


def specimens() -> Iterator[Specimen]:
    """Vocabularies; one that is no multiple of 16 among them."""
    for n in (50257, 128256, 262144):
        yield _specimen(n)


def _specimen(n: int) -> Specimen:
    def call(runtime: KernelRuntime) -> Any:
        x, temperatures = (torch.empty(shape, device="meta") for shape in ((256, n), (256,)))
        return probability_units(runtime, x, temperatures)

    return Specimen(f"n={n}", call)


KERNEL = Kernel("probability_units", array_ops.probability_units, (TUNABLE,), specimens)
