"""Level `ops`: embedding, top_k and scatter_add. They move and choose entries, so most of their results are exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

import numpy as np
from hypothesis import strategies as st

from octavo.backend import DType, WeightRole
from octavo_conformance.case import Case
from octavo_conformance.cases.ops.operation import HostArray, apply, generated, numbers, op_case, with_padding
from octavo_conformance.cases.ops.weights import Coding, codings, dense, on_device, quantized
from octavo_conformance.oracles import arrays
from octavo_conformance.oracles.linear import matrix
from octavo_conformance.workbench import PRECISE, Workbench

VOCABULARY = 128_256
"""Entries of a row of logits, as Llama 3 has them: more than 16 bits number."""


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        yield from _embedding_cases(dtype)
        yield from _top_k_cases(dtype)
    yield from _scatter_cases()


# -------------------------------------------------------------------------------------------------------- embedding


@dataclass(frozen=True, slots=True)
class _Embedding:
    """A table [vocabulary, hidden], dense or coded, and the rows that are asked for: its borders among them, twice."""

    dtype: DType
    tokens: int
    vocabulary: int
    hidden: int
    role: WeightRole = WeightRole.EMBEDDING
    coding: Coding | None = None


def _embedding_cases(dtype: DType) -> Iterator[Case]:
    for role in (WeightRole.EMBEDDING, WeightRole.TIED_EMBEDDING):
        # 70,000: ids that do not fit 16 bits.
        shapes = ((7, 97, 64), (1, 50, 17), (9, 70_000, 8), (130, 33, 33), (64, 2048, 24), (5, 1, 8), (3, 16, 1536))
        for index, (tokens, vocabulary, hidden) in enumerate(shapes):
            spec = _Embedding(dtype, tokens, vocabulary, hidden, role)
            variant = f"{role.value},tokens={tokens},vocabulary={vocabulary},hidden={hidden}"
            yield op_case("embedding", dtype, variant, partial(_embedding, spec), quick=index < 3)
    for coding in codings(dtype):  # prepared for both roles, tables are asked for rows beside `linear`
        spec = _Embedding(dtype, 9, 40, 128, coding=coding)
        run, needs = partial(_embedding, spec), coding.needs(dtype)
        yield op_case("embedding", dtype, coding.name, run, quick=coding.bits == 4, needs=needs)
    yield op_case("embedding", dtype, "generated", partial(_embeddings, dtype))


def _embedding(spec: _Embedding, bench: Workbench) -> None:
    shape = (spec.vocabulary, spec.hidden)
    host = quantized(bench, shape, spec.coding) if spec.coding else dense(bench, shape, spec.dtype)
    edges = np.array([spec.vocabulary - 1, 0, 0, spec.vocabulary - 1])[: spec.tokens]
    random = bench.rng.integers(0, spec.vocabulary, spec.tokens - len(edges))
    ids = bench.rng.permutation(np.concatenate([edges, random])).astype(np.int32)
    inputs = f"{spec.tokens} ids, table {list(shape)}, {spec.coding.name if spec.coding else 'dense'}"
    inputs += f", prepared as {spec.role.value}"
    weight = on_device(bench.device, host, spec.role)
    ops = bench.device.ops
    (result,) = apply(bench, "embedding", lambda ids: (ops.embedding(ids, weight),), [ids], inputs)
    rows = matrix(host)[ids]
    if spec.coding is None:
        bench.check_equal("embedding", result, rows.astype(spec.dtype.numpy), inputs)
    else:
        bench.check("embedding", spec.coding.scales, result, rows, inputs)


def _embeddings(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _Embedding,
        dtype=st.just(dtype),
        tokens=st.integers(1, 40),
        vocabulary=st.integers(1, 100),
        hidden=st.integers(1, 100),
        role=st.sampled_from([WeightRole.EMBEDDING, WeightRole.TIED_EMBEDDING]),
    )
    generated(bench, specs, _embedding)


# ------------------------------------------------------------------------------------------------------------ top_k


class _Entries(str, Enum):
    """What a row to choose from looks like."""

    NORMAL = "normal"
    TIES = "ties"  # few values, many entries of each
    EQUAL = "equal"  # one value only
    NEGATIVE = "negative"  # where an accumulator that starts at 0 wins
    INFINITE = "infinite"  # masked logits, most of them -inf, and a few +inf
    RISING = "rising"  # the last entries are the largest
    ZEROS = "zeros"  # 0.0 and -0.0, which are equal


@dataclass(frozen=True, slots=True)
class _TopK:
    dtype: DType
    rows: int
    n: int
    k: int
    entries: _Entries = _Entries.NORMAL
    padding: int = 0


def _top_k_cases(dtype: DType) -> Iterator[Case]:
    for entries in _Entries:
        yield _top_k_case(_TopK(dtype, 4, 257, 20, entries), quick=True)
        yield _top_k_case(_TopK(dtype, 1, 4096, 64, entries))
        yield _top_k_case(_TopK(dtype, 5, 17, 17, entries))
    for rows, n, k in ((1, 1, 1), (3, 8, 1), (70, 16, 4), (2, 1000, 999), (4, 31, 30)):
        yield _top_k_case(_TopK(dtype, rows, n, k), quick=rows == 1)
    yield _top_k_case(_TopK(dtype, 2, VOCABULARY, 64), quick=dtype is DType.FLOAT32)
    yield _top_k_case(_TopK(dtype, 2, VOCABULARY, 64, _Entries.TIES))
    yield _top_k_case(_TopK(dtype, 1, VOCABULARY, 1024))
    yield _top_k_case(_TopK(dtype, 3, 64, 8, padding=2))
    yield op_case("top_k", dtype, "generated", partial(_top_ks, dtype))


def _top_k_case(spec: _TopK, quick: bool = False) -> Case:
    variant = f"{spec.entries.value},rows={spec.rows},n={spec.n},k={spec.k}"
    variant += f",padding={spec.padding}" if spec.padding else ""
    return op_case("top_k", spec.dtype, variant, partial(_top_k, spec), quick=quick)


def _top_k(spec: _TopK, bench: Workbench) -> None:
    x = _entries(spec, bench)
    inputs = f"x {list(x.shape)} {spec.dtype.value}, k {spec.k}, entries {spec.entries.value}"
    inputs += f", then {spec.padding} padding rows of NaN" if spec.padding else ""
    ops = bench.device.ops
    values, indices = apply(
        bench, "top_k", lambda x: ops.top_k(x, spec.k), [with_padding(x, spec.padding)], inputs, spec.padding
    )
    expected_values, expected_indices = arrays.top_k(x, spec.k)
    bench.check_equal("top_k", indices, expected_indices, f"{inputs}; the indices")
    bench.check_equal("top_k", values, expected_values, f"{inputs}; the values")


def _entries(spec: _TopK, bench: Workbench) -> HostArray:
    shape = (spec.rows, spec.n)
    x = numbers(bench, shape, spec.dtype, scale=3.0)
    if spec.entries is _Entries.TIES:
        return bench.rng.integers(-3, 4, shape).astype(spec.dtype.numpy)
    if spec.entries is _Entries.EQUAL:
        return np.full(shape, -2.5, spec.dtype.numpy)
    if spec.entries is _Entries.NEGATIVE:
        return -np.abs(x)
    if spec.entries is _Entries.INFINITE:
        luck = bench.rng.random(shape)
        return np.where(luck < 0.95, -np.inf, np.where(luck > 0.98, np.inf, x)).astype(spec.dtype.numpy)
    if spec.entries is _Entries.RISING:
        return np.sort(x, axis=-1)
    if spec.entries is _Entries.ZEROS:
        return np.where(bench.rng.random(shape) < 0.5, 0.0, -0.0).astype(spec.dtype.numpy)
    return x


def _top_ks(dtype: DType, bench: Workbench) -> None:
    n = st.shared(st.integers(1, 300), key="n")
    specs = st.builds(
        _TopK,
        dtype=st.just(dtype),
        rows=st.integers(1, 9),
        n=n,
        k=n.flatmap(lambda n: st.integers(1, n)),
        entries=st.sampled_from(_Entries),
        padding=st.integers(0, 2),
    )
    generated(bench, specs, _top_k)


# ------------------------------------------------------------------------------------------------------ scatter_add


@dataclass(frozen=True, slots=True)
class _Scatter:
    """x [rows, n] and `edits` entries a row, the last `padding` of them padding: id 0, value 0.

    whole: numbers that add up without rounding, in any order. masked: half of x is -inf.
    """

    rows: int
    n: int
    edits: int
    padding: int = 0
    whole: bool = True
    masked: bool = False


def _scatter_cases() -> Iterator[Case]:
    variants = {
        "repeated,rows=3,n=5,edits=40": (_Scatter(3, 5, 40), True),
        "rounding,rows=4,n=16,edits=64": (_Scatter(4, 16, 64, whole=False), True),
        "padding,rows=4,n=33,edits=10": (_Scatter(4, 33, 10, padding=6), True),
        "masked,rows=2,n=64,edits=30": (_Scatter(2, 64, 30, padding=3, masked=True), True),
        "rows=1,n=7,edits=3": (_Scatter(1, 7, 3), True),
        "only_padding,rows=2,n=9,edits=4": (_Scatter(2, 9, 4, padding=4), False),
        "rows=1,n=1,edits=1": (_Scatter(1, 1, 1), False),
        "rows=70,n=65,edits=17": (_Scatter(70, 65, 17, padding=2), False),
        f"rows=2,n={VOCABULARY},edits=300": (_Scatter(2, VOCABULARY, 300, padding=20), False),
        f"rounding,rows=8,n={VOCABULARY},edits=64": (_Scatter(8, VOCABULARY, 64, whole=False), False),
    }
    for variant, (spec, quick) in variants.items():
        yield op_case("scatter_add", DType.FLOAT32, variant, partial(_scatter, spec), quick=quick)
    yield op_case("scatter_add", DType.FLOAT32, "generated", _scatters)


def _scatter(spec: _Scatter, bench: Workbench) -> None:
    x = numbers(bench, (spec.rows, spec.n), DType.FLOAT32, scale=4.0)
    values = numbers(bench, (spec.rows, spec.edits), DType.FLOAT32, scale=4.0)
    if spec.whole:
        x, values = np.rint(4 * x) / 4, np.rint(4 * values) / 4
    if spec.masked:
        x[bench.rng.random(x.shape) < 0.5] = -np.inf
    ids = bench.rng.integers(0, spec.n, values.shape).astype(np.int32)
    ids[:, : spec.edits // 2 : 2] = spec.n - 1  # the border, again and again
    if spec.padding:
        ids[:, -spec.padding :], values[:, -spec.padding :] = 0, 0.0
    inputs = f"x {list(x.shape)}, {spec.edits} entries a row, {spec.padding} of them padding"
    inputs += ", some of x is -inf" if spec.masked else ""
    ops = bench.device.ops
    (result,) = apply(
        bench, "scatter_add", lambda x, ids, values: (ops.scatter_add(x, ids, values),), [x, ids, values], inputs
    )
    expected = arrays.scatter_add(x, ids, values)
    if spec.whole:
        bench.check_equal("scatter_add", result, expected.astype(np.float32), inputs)
    else:
        bench.check("scatter_add", DType.FLOAT32, result, expected, inputs)


def _scatters(bench: Workbench) -> None:
    edits = st.shared(st.integers(1, 30), key="edits")
    specs = st.builds(
        _Scatter,
        rows=st.integers(1, 9),
        n=st.integers(1, 60),
        edits=edits,
        padding=edits.flatmap(lambda most: st.integers(0, most)),
        masked=st.booleans(),
    )
    generated(bench, specs, _scatter)
