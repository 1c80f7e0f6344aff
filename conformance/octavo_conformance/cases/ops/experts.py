"""Level `ops`: mixture_of_experts and lora, where each row takes weights of its own, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from octavo.backend import Activation, ArraySource, DenseWeight, DType, ExpertWeights, LoRABank, WeightRole
from octavo_conformance.case import Case
from octavo_conformance.cases.ops.operation import HostArray, apply, generated, numbers, op_case, with_padding
from octavo_conformance.cases.ops.weights import Coding, dense, on_device, quantized
from octavo_conformance.oracles import linear as oracle
from octavo_conformance.workbench import PRECISE, Workbench


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        yield from _expert_cases(dtype)
        yield from _lora_cases(dtype)


# ---------------------------------------------------------------------------------------------- mixture_of_experts


class _Router(str, Enum):
    """What the router's logits look like."""

    NORMAL = "normal"
    TIES = "ties"  # few values: the lower expert wins
    UNUSED = "unused"  # expert 1 is nobody's choice
    CROWDED = "crowded"  # expert 1 is everybody's first choice
    OVERFLOW = "overflow"  # expert 1 overflows, and only the last token chose it


@dataclass(frozen=True, slots=True)
class _Experts:
    dtype: DType
    tokens: int
    experts: int
    top_k: int
    hidden: int = 48
    intermediate: int = 40
    renormalize: bool = True
    router: _Router = _Router.NORMAL
    kind: Activation = Activation.SILU
    bias: bool = False
    padding: int = 0
    coding: Coding | None = None


def _expert_cases(dtype: DType) -> Iterator[Case]:
    for experts, top_k in ((4, 1), (4, 2), (8, 2), (8, 4), (16, 4), (64, 8), (4, 4)):
        for renormalize in (True, False):
            spec = _Experts(dtype, 9, experts, top_k, renormalize=renormalize)
            yield _expert_case(spec, quick=(experts, top_k) in ((8, 2), (64, 8)))
    for router in (_Router.TIES, _Router.UNUSED, _Router.CROWDED, _Router.OVERFLOW):
        yield _expert_case(_Experts(dtype, 7, 8, 2, router=router), quick=router is not _Router.UNUSED)
        yield _expert_case(_Experts(dtype, 5, 4, 1, router=router, renormalize=False))
    for kind in (Activation.GELU, Activation.GELU_TANH, Activation.RELU):
        yield _expert_case(_Experts(dtype, 3, 4, 2, kind=kind), quick=kind is Activation.GELU)
    yield _expert_case(_Experts(dtype, 1, 8, 2), quick=True)
    yield _expert_case(_Experts(dtype, 5, 4, 2, padding=3), quick=True)
    yield _expert_case(_Experts(dtype, 6, 4, 2, bias=True), quick=True)
    yield _expert_case(_Experts(dtype, 70, 4, 2, 33, 17))
    for coding in (
        Coding(4, 32, dtype, offsets=True),
        Coding(8, 64, dtype, offsets=True),
        Coding(4, 32, dtype, offsets=True, permutation=True),
        Coding(4, 32, dtype, codebook=True),
        Coding(6, 32, dtype),
    ):
        yield _expert_case(_Experts(dtype, 6, 4, 2, 64, 64, coding=coding), quick=coding.permutation)
    yield op_case("mixture_of_experts", dtype, "generated", partial(_some_experts, dtype))


def _expert_case(spec: _Experts, quick: bool = False) -> Case:
    parts = [spec.coding.name if spec.coding else "dense", f"tokens={spec.tokens}", f"top={spec.top_k}of{spec.experts}"]
    parts += [spec.router.value] if spec.router is not _Router.NORMAL else []
    parts += [spec.kind.value] if spec.kind is not Activation.SILU else []
    parts += ["bias"] if spec.bias else []
    parts += [f"padding={spec.padding}"] if spec.padding else []
    parts += [] if spec.renormalize else ["unnormalized"]
    needs = spec.coding.needs(spec.dtype) if spec.coding else None
    variant = ",".join(parts)
    return op_case("mixture_of_experts", spec.dtype, variant, partial(_experts, spec), quick=quick, needs=needs)


def _experts(spec: _Experts, bench: Workbench) -> None:
    x = numbers(bench, (spec.tokens, spec.hidden), spec.dtype)
    logits = _logits(spec, bench)
    gate_up = _stack(spec, bench, (spec.experts, 2 * spec.intermediate, spec.hidden))
    down = _stack(spec, bench, (spec.experts, spec.hidden, spec.intermediate))
    judged = spec.tokens
    if spec.router is _Router.OVERFLOW and isinstance(gate_up, DenseWeight):
        gate_up.array[1] = ml_dtypes.finfo(spec.dtype.numpy).max
        judged -= 1
    device = bench.device
    weights = ExpertWeights(
        on_device(device, gate_up, WeightRole.EXPERTS),
        on_device(device, down, WeightRole.EXPERTS),
        spec.kind,
        spec.renormalize,
    )
    inputs = _describe(spec)
    (result,) = apply(
        bench,
        "mixture_of_experts",
        lambda x, logits: (device.ops.mixture_of_experts(x, logits, weights, spec.top_k),),
        [with_padding(x, spec.padding), with_padding(logits, spec.padding)],
        inputs,
        spec.padding,
    )
    host = ExpertWeights(gate_up, down, spec.kind, spec.renormalize)
    expected = oracle.mixture_of_experts(x[:judged], logits[:judged], host, spec.top_k)
    bench.check("mixture_of_experts", spec.dtype, result[:judged], expected, inputs)


def _logits(spec: _Experts, bench: Workbench) -> HostArray:
    logits = numbers(bench, (spec.tokens, spec.experts), spec.dtype, scale=1.5)
    if spec.router is _Router.TIES:
        logits = bench.rng.integers(0, 2, logits.shape).astype(spec.dtype.numpy)
        logits[0] = 0
    if spec.router is _Router.CROWDED:
        logits[:, 1] = 6
    if spec.router in (_Router.UNUSED, _Router.OVERFLOW):
        logits[:, 1] = -20
    if spec.router is _Router.OVERFLOW:
        logits[-1, 1] = 20
    return logits


def _stack(spec: _Experts, bench: Workbench, shape: tuple[int, int, int]) -> oracle.HostWeight:
    scale = shape[-1] ** -0.5
    if spec.coding is not None:
        return quantized(bench, shape, spec.coding, spec.dtype if spec.bias else None, scale)
    return dense(bench, shape, spec.dtype, spec.bias, scale)


def _describe(spec: _Experts) -> str:
    text = (
        f"x [{spec.tokens}, {spec.hidden}], {spec.top_k} of {spec.experts} experts of {spec.intermediate}, "
        f"{spec.coding.name if spec.coding else 'dense'}, {spec.kind.value}, router {spec.router.value}, "
        f"weights {'normalized' if spec.renormalize else 'as they are'}"
    )
    text += ", with biases" if spec.bias else ""
    return text + (f", then {spec.padding} padding rows of NaN" if spec.padding else "")


def _some_experts(dtype: DType, bench: Workbench) -> None:
    experts = st.shared(st.integers(2, 9), key="experts")
    specs = st.builds(
        _Experts,
        dtype=st.just(dtype),
        tokens=st.integers(1, 12),
        experts=experts,
        top_k=experts.flatmap(lambda most: st.integers(1, most)),
        hidden=st.integers(8, 50),
        intermediate=st.integers(8, 50),
        renormalize=st.booleans(),
        router=st.sampled_from([_Router.NORMAL, _Router.TIES, _Router.CROWDED]),
        kind=st.sampled_from(Activation),
        padding=st.integers(0, 2),
    )
    generated(bench, specs, _experts)


# ------------------------------------------------------------------------------------------------------------- lora


@dataclass(frozen=True, slots=True)
class _LoRA:
    """Rows of mixed adapters. adapters: how many the bank has, each of its own rank up to `rank`, padded with zeros.

    none: no row has an adapter. overflow: the last adapter overflows; the rows that have it are not looked at.
    """

    dtype: DType
    tokens: int
    rank: int
    adapters: int = 4
    size: int = 72
    out: int = 100
    none: bool = False
    overflow: bool = False
    padding: int = 0


def _lora_cases(dtype: DType) -> Iterator[Case]:
    variants = {
        "mixed,rank=8": (_LoRA(dtype, 11, 8), True),
        "mixed,rank=1": (_LoRA(dtype, 9, 1), True),
        "mixed,rank=16": (_LoRA(dtype, 9, 16), False),
        "none,rank=8": (_LoRA(dtype, 5, 8, none=True), True),
        "overflow,rank=8": (_LoRA(dtype, 9, 8, overflow=True), True),
        "padding,rank=8": (_LoRA(dtype, 7, 8, padding=3), True),
        "adapters=1,rank=8": (_LoRA(dtype, 6, 8, adapters=1), False),
        "one_token,rank=16": (_LoRA(dtype, 1, 16, adapters=2), False),
        "many_tokens,rank=8": (_LoRA(dtype, 130, 8, adapters=9), False),
        "odd,rank=3": (_LoRA(dtype, 8, 3, size=33, out=17), False),
        "long,rank=64": (_LoRA(dtype, 5, 64, size=2048, out=64), False),
    }
    for variant, (spec, quick) in variants.items():
        yield op_case("lora", dtype, variant, partial(_lora, spec), quick=quick)
    yield op_case("lora", dtype, "generated", partial(_loras, dtype))


def _lora(spec: _LoRA, bench: Workbench) -> None:
    x, y = (numbers(bench, (spec.tokens, size), spec.dtype) for size in (spec.size, spec.out))
    bank = _bank(spec, bench)
    ids = _adapter_ids(spec, bench)
    inputs = f"x [{spec.tokens}, {spec.size}], y [{spec.tokens}, {spec.out}], {spec.adapters} adapters of rank up to "
    inputs += f"{spec.rank}, rows with {', '.join(map(str, ids[:12].tolist()))}{' ...' if len(ids) > 12 else ''}"
    inputs += ", of which the last overflows" if spec.overflow else ""
    inputs += f", then {spec.padding} padding rows of NaN" if spec.padding else ""
    device = bench.device
    a, b = (
        device.prepare(device.load(ArraySource(name, side), spec.dtype), WeightRole.OTHER)
        for name, side in (("lora_a", bank.a), ("lora_b", bank.b))
    )
    padded_ids = np.concatenate([ids, np.full(spec.padding, -1, np.int32)])
    (result,) = apply(
        bench,
        "lora",
        lambda x, y, ids: (device.ops.lora(x, y, LoRABank(a, b), ids),),
        [with_padding(x, spec.padding), with_padding(y, spec.padding), padded_ids],
        inputs,
        spec.padding,
    )
    judged = np.flatnonzero(ids != spec.adapters - 1) if spec.overflow else np.arange(spec.tokens)
    expected = oracle.lora(x[judged], y[judged], bank, ids[judged])
    bench.check("lora", spec.dtype, result[judged], expected, inputs)
    plain = np.flatnonzero(ids == -1)
    bench.check_equal("lora", result[plain], y[plain], f"{inputs}; the rows without an adapter, which are y unchanged")


def _bank(spec: _LoRA, bench: Workbench) -> LoRABank:
    a = numbers(bench, (spec.adapters, spec.rank, spec.size), spec.dtype, spec.size**-0.5)
    b = numbers(bench, (spec.adapters, spec.out, spec.rank), spec.dtype, spec.rank**-0.5)
    for adapter in range(1, spec.adapters):
        rank = max(1, spec.rank - adapter)
        a[adapter, rank:] = 0
        b[adapter, :, rank:] = 0
    if spec.overflow:
        a[-1] = b[-1] = ml_dtypes.finfo(spec.dtype.numpy).max
    return LoRABank(a, b)


def _adapter_ids(spec: _LoRA, bench: Workbench) -> HostArray:
    """Every adapter and none, with others beside it as far as the rows reach."""
    if spec.none:
        return np.full(spec.tokens, -1, np.int32)
    every = np.resize([0, -1, *range(spec.adapters - 1, 0, -1)], spec.tokens)
    return every.astype(np.int32)


def _loras(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _LoRA,
        dtype=st.just(dtype),
        tokens=st.integers(1, 30),
        rank=st.integers(1, 20),
        adapters=st.integers(1, 5),
        size=st.integers(1, 100),
        out=st.integers(8, 100),
        none=st.booleans(),
        padding=st.integers(0, 2),
    )
    generated(bench, specs, _lora)
