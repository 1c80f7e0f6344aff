"""Level `ops`: rms_norm, rotary and gated_activation against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st

from octavo.backend import Activation, ArraySource, DType, RotaryTable, WeightRole
from octavo_conformance.case import Case, Needs
from octavo_conformance.cases.ops.operation import apply, generated, numbers, op_case, with_padding
from octavo_conformance.oracles import arrays
from octavo_conformance.workbench import PRECISE, Workbench


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        yield from _norm_cases(dtype)
        yield from _rotary_cases(dtype)
        yield from _gate_cases(dtype)


# --------------------------------------------------------------------------------------------------------- rms_norm


@dataclass(frozen=True, slots=True)
class _Norm:
    """x [*leading, hidden] of numbers about `scale` in size.

    hidden: None is the device's head size (the norms of q and k). padding: rows of NaN after the real ones. zeros: the
    first row is all zeros.
    """

    dtype: DType
    leading: tuple[int, ...]
    hidden: int | None
    eps: float = 1e-6
    scale: float = 1.0
    residual: bool = False
    padding: int = 0
    zeros: bool = False


def _norm_cases(dtype: DType) -> Iterator[Case]:
    variants = {
        "plain": (_Norm(dtype, (5,), 576), True),
        "residual": (_Norm(dtype, (5,), 576, residual=True), True),
        "heads": (_Norm(dtype, (6, 3), None), True),
        # Squares are of the size of eps: one that is left out, doubled or outside of the root is seen.
        "epsilon": (_Norm(dtype, (8,), 64, eps=1e-5, scale=3e-3, residual=True, zeros=True), True),
        # Squares beyond float16, and their sum far beyond it.
        "large": (_Norm(dtype, (3,), 4096, scale=300.0), True),
        "padding": (_Norm(dtype, (5,), 576, residual=True, padding=3), True),
        "one_token": (_Norm(dtype, (1,), 576, residual=True), False),
        "many_tokens": (_Norm(dtype, (300,), 64, residual=True), False),
        "hidden=1": (_Norm(dtype, (4,), 1, eps=1e-2), False),
        "hidden=17": (_Norm(dtype, (9,), 17, residual=True), False),
        "hidden=1025": (_Norm(dtype, (3,), 1025, residual=True), False),
        "hidden=8192": (_Norm(dtype, (2,), 8192), False),
        "tiny": (_Norm(dtype, (4,), 576, eps=1e-5, scale=3e-4), False),
    }
    for variant, (spec, quick) in variants.items():
        yield op_case("rms_norm", dtype, variant, partial(_norm, spec), quick=quick)
    yield op_case("rms_norm", dtype, "generated", partial(_norms, dtype))


def _norm(spec: _Norm, bench: Workbench) -> None:
    hidden = bench.head_size if spec.hidden is None else spec.hidden
    shape = (*spec.leading, hidden)
    weight = numbers(bench, (hidden,), spec.dtype, scale=0.2, shift=1.0)
    given = [numbers(bench, shape, spec.dtype, spec.scale) for _ in range(2 if spec.residual else 1)]
    for array in given:
        array[: int(spec.zeros)] = 0
    inputs = f"x {list(shape)} about {spec.scale:g}, eps {spec.eps:g}, {'with' if spec.residual else 'no'} residual"
    if spec.padding:
        inputs += f", then {spec.padding} padding rows of NaN"
    device = bench.device
    loaded = device.prepare(device.load(ArraySource("norm.weight", weight), spec.dtype), WeightRole.NORM)
    normed, total = apply(
        bench,
        "rms_norm",
        lambda x, residual=None: device.ops.rms_norm(x, loaded, spec.eps, residual),
        [with_padding(array, spec.padding) for array in given],
        inputs,
        spec.padding,
    )
    expected = arrays.rms_norm(given[0], weight, spec.eps, given[1] if spec.residual else None)
    bench.check("rms_norm", spec.dtype, normed, expected[0], f"{inputs}; the norm")
    if spec.residual:
        bench.check("rms_norm", spec.dtype, total, expected[1], f"{inputs}; the sum")
    else:
        bench.check_equal("rms_norm", total, given[0], f"{inputs}; the sum, which is x itself")


def _norms(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _Norm,
        dtype=st.just(dtype),
        leading=st.one_of(st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 9), st.integers(1, 5))),
        hidden=st.integers(8, 200),
        eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
        scale=st.sampled_from([0.01, 1.0, 30.0]),
        residual=st.booleans(),
        padding=st.integers(0, 3),
    )
    generated(bench, specs, _norm)


# ----------------------------------------------------------------------------------------------------------- rotary


@dataclass(frozen=True, slots=True)
class _Rotary:
    """q [tokens, heads, head_size] and k [tokens, kv_heads, head_size] at positions up to `positions`."""

    dtype: DType
    tokens: int
    heads: int
    kv_heads: int
    head_size: int
    rotary_size: int
    interleaved: bool = False
    positions: int = 128


def _rotary_cases(dtype: DType) -> Iterator[Case]:
    for interleaved in (False, True):
        pairs = "interleaved" if interleaved else "halves"
        shapes = {  # tokens, heads, kv_heads, head_size, rotary_size
            "heads=9x3x64": (7, 9, 3, 64, 64),
            "partial,heads=4x2x64,rotary=32": (5, 4, 2, 64, 32),
            "heads=8x1x128": (3, 8, 1, 128, 128),
            "heads=3x3x80,rotary=32": (4, 3, 3, 80, 32),
            "heads=4x4x256": (2, 4, 4, 256, 256),
            "one_token,heads=4x2x64": (1, 4, 2, 64, 64),
            "many_tokens,heads=2x1x64": (130, 2, 1, 64, 64),
            "partial,heads=2x1x96,rotary=2": (4, 2, 1, 96, 2),
        }
        for index, (variant, sizes) in enumerate(shapes.items()):
            spec = _Rotary(dtype, *sizes, interleaved)
            yield _rotary_case(spec, f"{pairs},{variant}", quick=index < 2)
        # Angles of thousands of turns: a backend that computes them itself in low precision is far off.
        far = _Rotary(dtype, 6, 2, 1, 64, 64, interleaved, positions=20_000)
        yield _rotary_case(far, f"{pairs},far,heads=2x1x64", quick=not interleaved)
    yield op_case("rotary", dtype, "generated", partial(_rotaries, dtype))


def _rotary_case(spec: _Rotary, variant: str, quick: bool) -> Case:
    needs = Needs(dtypes=(spec.dtype,), head_sizes=(spec.head_size,))
    return op_case("rotary", spec.dtype, variant, partial(_rotary, spec), quick=quick, needs=needs)


def _rotary(spec: _Rotary, bench: Workbench) -> None:
    pairs = spec.rotary_size // 2
    angles = np.arange(spec.positions)[:, None] * 10_000.0 ** (-np.arange(pairs) / pairs)
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # The borders, a repeated position, and no order: tokens of several sequences stand side by side.
    edges = np.array([spec.positions - 1, 0, 7, 7], np.int32)[: spec.tokens]
    random = bench.rng.integers(0, spec.positions, spec.tokens - len(edges))
    positions = np.concatenate([edges, random]).astype(np.int32)
    q, k = (numbers(bench, (spec.tokens, heads, spec.head_size), spec.dtype) for heads in (spec.heads, spec.kv_heads))
    inputs = (
        f"q {list(q.shape)}, k {list(k.shape)}, rotary size {spec.rotary_size}, "
        f"{'interleaved pairs' if spec.interleaved else 'pairs of halves'}, positions up to {spec.positions - 1}"
    )
    device = bench.device
    table = RotaryTable(device.upload(cos_sin.copy()), spec.interleaved)
    results = apply(bench, "rotary", lambda q, k, at: device.ops.rotary(q, k, at, table), [q, k, positions], inputs)
    for name, result, source in zip("qk", results, (q, k), strict=True):
        expected = arrays.rotary(source, positions, cos_sin, spec.interleaved)
        bench.check("rotary", spec.dtype, result, expected, f"{inputs}; {name}")
        rest = slice(spec.rotary_size, None)
        bench.check_equal(
            "rotary", result[..., rest], source[..., rest], f"{inputs}; the entries of {name} that are not rotated"
        )


def _rotaries(dtype: DType, bench: Workbench) -> None:
    size = bench.head_size
    kv_heads = st.shared(st.integers(1, 3), key="kv_heads")
    specs = st.builds(
        _Rotary,
        dtype=st.just(dtype),
        tokens=st.integers(1, 20),
        heads=st.tuples(kv_heads, st.integers(1, 8)).map(lambda sizes: sizes[0] * sizes[1]),
        kv_heads=kv_heads,
        head_size=st.just(size),
        rotary_size=st.integers(1, size // 2).map(lambda pairs: 2 * pairs),
        interleaved=st.booleans(),
        positions=st.integers(8, 500),
    )
    generated(bench, specs, _rotary)


# ------------------------------------------------------------------------------------------------- gated_activation


@dataclass(frozen=True, slots=True)
class _Gate:
    """x [tokens, 2 * intermediate]. far: gates at which exp and cubes overflow, of either sign."""

    dtype: DType
    tokens: int
    intermediate: int
    kind: Activation
    scale: float = 2.0
    far: bool = False
    padding: int = 0


def _gate_cases(dtype: DType) -> Iterator[Case]:
    variants: dict[str, tuple[_Gate, bool]] = {}
    for kind in Activation:
        variants[f"{kind.value},plain"] = (_Gate(dtype, 5, 96, kind), True)
        variants[f"{kind.value},far"] = (_Gate(dtype, 3, 16, kind, far=True), True)
        variants[f"{kind.value},small"] = (_Gate(dtype, 4, 64, kind, scale=0.05), False)
    silu, gelu = Activation.SILU, Activation.GELU
    variants |= {
        "padding": (_Gate(dtype, 3, 40, silu, padding=2), True),
        "one_token": (_Gate(dtype, 1, 1536, silu), False),
        "many_tokens": (_Gate(dtype, 130, 33, gelu), False),
        "intermediate=1": (_Gate(dtype, 9, 1, silu), False),
        "intermediate=7": (_Gate(dtype, 4, 7, gelu), False),
    }
    for variant, (spec, quick) in variants.items():
        yield op_case("gated_activation", dtype, variant, partial(_gate, spec), quick=quick)
    yield op_case("gated_activation", dtype, "generated", partial(_gates, dtype))


def _gate(spec: _Gate, bench: Workbench) -> None:
    x = numbers(bench, (spec.tokens, 2 * spec.intermediate), spec.dtype, spec.scale)
    if spec.far:
        # float16 ends at 65504; its cube of 3e4 is beyond it, and exp(100) is beyond float32.
        low, high = -np.geomspace(20.0, 3e4, spec.intermediate), np.geomspace(20.0, 3e4, spec.intermediate)
        x[:, : spec.intermediate] = np.where(np.arange(spec.tokens)[:, None] % 3 == 0, low, high)
        x[2::3, : spec.intermediate : 2] *= -1
        x[:, spec.intermediate :] = np.clip(x[:, spec.intermediate :], -2.0, 2.0)
    inputs = f"x {list(x.shape)}, {spec.kind.value}" + (", gates from 20 to 30000 of either sign" if spec.far else "")
    if spec.padding:
        inputs += f", then {spec.padding} padding rows of NaN"
    ops = bench.device.ops
    (result,) = apply(
        bench,
        "gated_activation",
        lambda x: (ops.gated_activation(x, spec.kind),),
        [with_padding(x, spec.padding)],
        inputs,
        spec.padding,
    )
    expected = arrays.gated_activation(x, spec.kind)
    bench.check("gated_activation", spec.dtype, result, expected, inputs)


def _gates(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _Gate,
        dtype=st.just(dtype),
        tokens=st.integers(1, 40),
        intermediate=st.integers(8, 200),
        kind=st.sampled_from(Activation),
        scale=st.sampled_from([0.1, 1.0, 8.0]),
        padding=st.integers(0, 3),
    )
    generated(bench, specs, _gate)
