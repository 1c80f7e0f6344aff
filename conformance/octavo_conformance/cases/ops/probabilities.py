"""Level `ops`: probability_units. Integers, each next to the float64 probability; a row's the same in any batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import cycle, islice

import numpy as np
from hypothesis import strategies as st

from octavo.backend import DType
from octavo_conformance.case import Case
from octavo_conformance.cases.ops.operation import HostArray, apply, generated, numbers, op_case, with_padding
from octavo_conformance.oracles import arrays
from octavo_conformance.workbench import Workbench

UNITS = 1 << 30
"""The probability 1."""

ROUNDING = 0.6
"""How far a unit may be from the exact one, beside the tolerance: rounded to the nearest integer, with some room."""

TOKENIZERS = (50_257, 128_256)
"""Entries of a row of logits, as GPT-2 has them, which is odd, and Llama 3."""


class _Kind(str, Enum):
    """What the rows look like."""

    NORMAL = "normal"
    FLAT = "flat"  # all equal, so that the sum has the most to add up
    HOT = "hot"  # one far above the rest, which is the last of its row, or the first
    MASKED = "masked"  # nine of ten are -inf
    SINGLE = "single"  # all but one are -inf
    FAR = "far"  # where exp overflows, or is 0, unless the largest is subtracted
    FORBIDDEN = "forbidden"  # a finite mask, as the sampler's own


@dataclass(frozen=True, slots=True)
class _Units:
    rows: int
    n: int
    kind: _Kind = _Kind.NORMAL
    padding: int = 0


def cases() -> Iterator[Case]:
    for kind in _Kind:
        yield _case(_Units(7, 127, kind), quick=True)
        yield _case(_Units(3, TOKENIZERS[0], kind), quick=kind is _Kind.NORMAL)
        yield _case(_Units(5, 128, kind))
    yield _case(_Units(1, 1), quick=True)
    yield _case(_Units(1, 128), quick=True)
    for rows, n in ((9, 1), (4, 2), (6, 129), (70, 300), (1, TOKENIZERS[0]), (2, TOKENIZERS[1])):
        yield _case(_Units(rows, n))
    yield _case(_Units(2, TOKENIZERS[1], _Kind.FLAT))
    yield _case(_Units(5, 200, padding=2), quick=True)
    for others, n, quick in ((33, 127, True), (33, 5_000, True), (7, TOKENIZERS[0], False)):
        run, variant = partial(_row_alone_or_among, others, n), f"row_alone_or_among_{others},n={n}"
        yield op_case("probability_units", DType.FLOAT32, variant, run, quick=quick)
    yield op_case("probability_units", DType.FLOAT32, "generated", _generated)


def _case(spec: _Units, quick: bool = False) -> Case:
    variant = f"{spec.kind.value},rows={spec.rows},n={spec.n}"
    variant += f",padding={spec.padding}" if spec.padding else ""
    return op_case("probability_units", DType.FLOAT32, variant, partial(_units, spec), quick=quick)


def _units(spec: _Units, bench: Workbench) -> None:
    x, temperatures = _logits(spec, bench), _temperatures(spec.rows, bench)
    inputs = f"x {list(x.shape)}, {spec.kind.value}, temperatures {min(temperatures):.2g} to {max(temperatures):.2g}"
    inputs += f", then {spec.padding} padding rows of NaN" if spec.padding else ""
    _check(bench, _result(bench, x, temperatures, inputs, spec.padding), x, temperatures, inputs)


def _row_alone_or_among(others: int, n: int, bench: Workbench) -> None:
    """A row among others has the bits that it has alone."""
    kinds = islice(cycle(_Kind), 1 + others)
    x = np.concatenate([_logits(_Units(1, n, kind), bench) for kind in kinds])
    temperatures = _temperatures(len(x), bench)
    inputs = f"x {list(x.shape)}, rows of all kinds"
    among = _result(bench, x, temperatures, inputs)
    _check(bench, among, x, temperatures, inputs)
    for row in (0, 2, 3, others):
        mine = slice(row, row + 1)
        what = f"row {row} of {inputs}, alone"
        alone = _result(bench, x[mine], temperatures[mine], what)
        bench.check_equal("probability_units", alone, among[mine], f"{what}, as it was among the others")


def _result(bench: Workbench, x: HostArray, temperatures: HostArray, inputs: str, padding: int = 0) -> HostArray:
    ops = bench.device.ops
    arguments = [with_padding(x, padding), with_padding(temperatures, padding)]
    (result,) = apply(
        bench,
        "probability_units",
        lambda x, temperatures: (ops.probability_units(x, temperatures),),
        arguments,
        inputs,
        padding,
        other=_warmer,
    )
    return result


def _warmer(argument: HostArray) -> HostArray:
    """Other logits and other temperatures, which stay positive."""
    return argument[::-1] + np.float32(1.0)


def _check(bench: Workbench, got: HostArray, x: HostArray, temperatures: HostArray, inputs: str) -> None:
    """Each unit against float64; the tolerance is the square of its relative error."""
    op = "probability_units"
    bench.check_form(op, got, x.shape, DType.INT32, inputs)
    exact = UNITS * arrays.softmax(x, temperatures)
    tolerance = bench.tolerances.of(op, DType.FLOAT32)
    excess = np.abs(got - exact) - ROUNDING
    relative = np.max(np.where(excess > 0.0, excess, 0.0) / np.maximum(exact, 1e-30), axis=-1)  # [rows]
    bench.nmse, bench.tolerance = max(bench.nmse or 0.0, float(np.max(relative)) ** 2), tolerance
    row = int(np.argmax(relative))
    worst = int(np.argmax(excess[row] - math.sqrt(tolerance) * exact[row]))
    bench.require(
        bench.nmse <= tolerance,
        f"{op}: {got[row, worst]} units, expected {exact[row, worst]:.6g}, and {ROUNDING} more or less and "
        f"{math.sqrt(tolerance):.1e} of them are allowed ({inputs}). It is entry {worst} of row {row}, of temperature "
        f"{temperatures[row]:.3g}.",
    )
    sums = np.sum(got, axis=-1, dtype=np.int64)
    off = int(np.max(np.abs(sums - UNITS)))
    allowed = x.shape[-1] / 2 + math.sqrt(tolerance) * UNITS
    bench.require(off <= allowed, f"{op}: a row's units add up to {UNITS} but for {off}, {allowed:.0f} is allowed.")
    bench.check_equal(op, got.astype(np.float32).astype(np.int32), got, f"{inputs}; rounded to float32")


def _logits(spec: _Units, bench: Workbench) -> HostArray:
    shape = (spec.rows, spec.n)
    x = numbers(bench, shape, DType.FLOAT32, scale=3.0)
    rows, chosen = np.arange(spec.rows), bench.rng.integers(0, spec.n, spec.rows)
    chosen[: min(2, spec.rows)] = (spec.n - 1, 0)[: spec.rows]
    if spec.kind is _Kind.FLAT:
        x[:] = x[:, :1]
    elif spec.kind is _Kind.HOT:
        x[rows, chosen] = np.max(x, axis=-1) + 20.0
    elif spec.kind is _Kind.MASKED:
        kept = x[rows, chosen]
        x[bench.rng.random(shape) < 0.9] = -np.inf
        x[rows, chosen] = kept
    elif spec.kind is _Kind.SINGLE:
        kept = x[rows, chosen]
        x[:] = -np.inf
        x[rows, chosen] = kept
    elif spec.kind is _Kind.FAR:
        x += np.where(rows % 2 == 0, 3e3, -3e3).astype(np.float32)[:, None]
    elif spec.kind is _Kind.FORBIDDEN:
        x[:, 1::2] = -1e20
    return x


def _temperatures(rows: int, bench: Workbench) -> HostArray:
    """From 0.01 to 100, both among several; 1 for a row alone."""
    return bench.rng.permutation(np.logspace(-2, 2, rows) if rows > 1 else np.ones(1)).astype(np.float32)


def _generated(bench: Workbench) -> None:
    specs = st.builds(
        _Units,
        rows=st.integers(1, 9),
        n=st.integers(1, 400),
        kind=st.sampled_from(_Kind),
        padding=st.integers(0, 2),
    )
    generated(bench, specs, _units)
