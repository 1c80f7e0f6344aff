"""Level `ops`: linear, with dense and with quantized weights, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st

from octavo.backend import DenseWeight, DType, Weight, WeightRole
from octavo_conformance.case import Case
from octavo_conformance.cases.ops.operation import HostArray, apply, generated, numbers, op_case, with_padding
from octavo_conformance.cases.ops.weights import Coding, codings, dense, on_device, quantized
from octavo_conformance.oracles import linear as oracle
from octavo_conformance.workbench import PRECISE, Workbench


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        yield from _dense_cases(dtype)
        yield from _sum_cases(dtype)
        yield from _quantized_cases(dtype)
        yield op_case("linear", dtype, "generated", partial(_generated, dtype))


@dataclass(frozen=True, slots=True)
class _Linear:
    """x [rows, size] and a weight [out, size]. shift: the mean of x and of the weight. padding: rows of NaN after x."""

    dtype: DType
    rows: int
    out: int
    size: int
    bias: bool = False
    role: WeightRole = WeightRole.LINEAR
    shift: float = 0.0
    padding: int = 0
    coding: Coding | None = None


_SHAPES = (  # rows, out, size: next to none of them a multiple of what a kernel works in
    (1, 576, 64),
    (8, 33, 17),
    (1, 1, 1),
    (64, 1, 33),
    (2, 7, 1),
    (17, 17, 7),
    (17, 64, 576),
    (2, 1536, 33),
    (8, 33, 1536),
    (64, 576, 17),
    (65, 65, 65),
    (1, 33, 576),
    (2, 129, 576),
)


def _dense_cases(dtype: DType) -> Iterator[Case]:
    for index, (rows, out, size) in enumerate(_SHAPES):
        bias = index % 2 == 1
        spec = _Linear(dtype, rows, out, size, bias)
        variant = f"rows={rows},out={out},in={size}" + (",bias" if bias else "")
        yield op_case("linear", dtype, variant, partial(_linear, spec), quick=index < 2)
    for rows, out, size in ((1, 33, 17), (8, 97, 64), (2, 2048, 64)):
        spec = _Linear(dtype, rows, out, size, role=WeightRole.TIED_EMBEDDING)
        variant = f"tied,rows={rows},out={out},in={size}"
        yield op_case("linear", dtype, variant, partial(_linear, spec), quick=rows == 8)
    for rows, padding in ((5, 3), (1, 7), (17, 15)):
        spec = _Linear(dtype, rows, 70, 100, bias=True, padding=padding)
        variant = f"padding={padding},rows={rows},out=70,in=100"
        yield op_case("linear", dtype, variant, partial(_linear, spec), quick=rows == 5)


def _sum_cases(dtype: DType) -> Iterator[Case]:
    """What low-precision accumulators get wrong."""
    for rows, size in ((2, 4096), (1, 8192), (9, 4099)):
        # A sum that only grows: at 2**8 (bfloat16) or 2**11 (float16) one more term no longer counts.
        spec = _Linear(dtype, rows, 33, size, shift=1.0)
        yield op_case("linear", dtype, f"long,rows={rows},in={size}", partial(_linear, spec), quick=rows == 2)
    yield op_case("linear", dtype, "cancellation", partial(_cancellation, dtype), quick=True)
    yield op_case("linear", dtype, "alone", partial(_alone, dtype), quick=True)


def _quantized_cases(dtype: DType) -> Iterator[Case]:
    for coding in codings(dtype):
        for role, rows, out, size in (
            (WeightRole.LINEAR, 3, 33, 256),
            (WeightRole.LINEAR, 40, 17, 128),
            (WeightRole.TIED_EMBEDDING, 1, 64, 128),
        ):
            tied = role is WeightRole.TIED_EMBEDDING
            spec = _Linear(dtype, rows, out, size, not tied, role, coding=coding)
            variant = f"{'tied,' if tied else ''}{coding.name},rows={rows},out={out},in={size}"
            quick = rows == 3 or (tied and coding.bits == 4)
            yield op_case("linear", dtype, variant, partial(_linear, spec), quick=quick, needs=coding.needs(dtype))


def _linear(spec: _Linear, bench: Workbench) -> None:
    x = numbers(bench, (spec.rows, spec.size), spec.dtype, shift=spec.shift)
    host = _weight(spec, bench)
    weight = on_device(bench.device, host, spec.role)
    inputs = _describe(spec)
    _check(spec.dtype, bench, x, host, weight, inputs, spec.padding)
    if spec.role is WeightRole.TIED_EMBEDDING:
        _check_rows(spec, bench, host, weight, inputs)


def _check(
    dtype: DType,
    bench: Workbench,
    x: HostArray,
    host: oracle.HostWeight,
    weight: Weight,
    inputs: str,
    padding: int = 0,
) -> None:
    ops = bench.device.ops
    (result,) = apply(bench, "linear", lambda x: (ops.linear(x, weight),), [with_padding(x, padding)], inputs, padding)
    bench.check("linear", dtype, result, oracle.linear(x, host), inputs)


def _check_rows(spec: _Linear, bench: Workbench, host: oracle.HostWeight, weight: Weight, inputs: str) -> None:
    """The same prepared weight as an input embedding."""
    ids = np.array([spec.out - 1, 0, spec.out // 2], np.int32)
    ops = bench.device.ops
    (rows,) = apply(bench, "embedding", lambda ids: (ops.embedding(ids, weight),), [ids], inputs)
    dtype = spec.coding.scales if spec.coding else spec.dtype
    bench.check("embedding", dtype, rows, oracle.matrix(host)[ids], f"{inputs}, after linear had used it")


def _weight(spec: _Linear, bench: Workbench) -> oracle.HostWeight:
    shape = (spec.out, spec.size)
    if spec.coding is not None:
        return quantized(bench, shape, spec.coding, spec.dtype if spec.bias else None)
    return dense(bench, shape, spec.dtype, spec.bias, shift=spec.shift)


def _describe(spec: _Linear) -> str:
    kind = spec.coding.name if spec.coding else "dense"
    text = f"x [{spec.rows}, {spec.size}], weight [{spec.out}, {spec.size}] {kind}, prepared as {spec.role.value}"
    text += ", with bias" if spec.bias else ", no bias"
    text += f", of mean {spec.shift:g}" if spec.shift else ""
    return text + (f", then {spec.padding} padding rows of NaN" if spec.padding else "")


def _cancellation(dtype: DType, bench: Workbench) -> None:
    """The first half of the inputs sums up to what the second takes away again.

    In float16 the sum of one half lies beyond its largest number. Float32 has no better accumulator to be told apart
    from, so there the halves are short.
    """
    wide = dtype is DType.FLOAT32
    half, shift, noise = (32, 1.0, 0.5) if wide else (2048, 8.0, 0.8)
    x = numbers(bench, (3, 2 * half), dtype, noise, shift)
    matrix = numbers(bench, (33, 2 * half), dtype, noise, shift)
    matrix[:, half:] *= -1
    host = DenseWeight(matrix)
    inputs = f"x [3, {2 * half}], weight [33, {2 * half}], whose halves sum up to {half * shift**2:g} of either sign"
    _check(dtype, bench, x, host, on_device(bench.device, host, WeightRole.LINEAR), inputs)


def _alone(dtype: DType, bench: Workbench) -> None:
    """A row has the same result alone and in batches of every size."""
    x = numbers(bench, (64, 100), dtype)
    host = dense(bench, (70, 100), dtype, bias=True)
    weight = on_device(bench.device, host, WeightRole.LINEAR)
    expected = oracle.linear(x, host)
    device = bench.device
    for rows in (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 64):
        for start in {0, 64 - rows}:
            part = slice(start, start + rows)
            result = device.download(device.ops.linear(device.upload(x[part].copy()), weight))
            inputs = f"rows {start} to {start + rows - 1} of x [64, 100], weight [70, 100], with bias"
            bench.check("linear", dtype, result, expected[part], inputs)


def _generated(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _Linear,
        dtype=st.just(dtype),
        rows=st.integers(1, 70),
        out=st.integers(8, 150),
        size=st.integers(1, 300),
        bias=st.booleans(),
        role=st.sampled_from([WeightRole.LINEAR, WeightRole.TIED_EMBEDDING]),
        shift=st.sampled_from([0.0, 0.0, 1.0]),
        padding=st.integers(0, 3),
    )
    generated(bench, specs, _linear)
