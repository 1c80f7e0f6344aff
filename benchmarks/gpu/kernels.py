"""The operations beside attention, each with the bytes it has to move at the least; all but prefill-sized products are
bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.part import Bench, Measurement
from benchmarks.gpu.scale import Scale
from octavo.backend import (
    Activation,
    DenseWeight,
    DType,
    ExpertWeights,
    KVLayout,
    QuantizedWeight,
    RotaryTable,
    WeightRole,
)

Call = Callable[[], object]

_MOST_SETS = 64
_POSITIONS = 4096


def measurements(scale: Scale) -> Iterator[Measurement]:
    for rows in scale.rows:
        yield Measurement(f"rms_norm/rows={rows}", partial(_rms_norm, rows))
        yield Measurement(f"rotary_write_kv/rows={rows}", partial(_rotary_write_kv, rows))
        yield Measurement(f"gated_activation/rows={rows}", partial(_gated_activation, rows))
    for rows in scale.quantized_rows:
        yield Measurement(f"linear/{scale.dtype}/rows={rows}", partial(_linear, rows))
        for bits in (8, 4):
            yield Measurement(f"quantized_linear/int{bits}/rows={rows}", partial(_quantized_linear, bits, rows))
    for rows in scale.expert_rows:
        yield Measurement(f"mixture_of_experts/rows={rows}", partial(_mixture_of_experts, rows))
    rows, vocabulary, k = scale.top_k
    yield Measurement(f"top_k/rows={rows},of={vocabulary},k={k}", _top_k)
    yield Measurement(f"top_k-torch/rows={rows},of={vocabulary},k={k}", _torch_top_k)


# ----------------------------------------------------------------------------------------------------- the operations


def _rms_norm(rows: int, bench: Bench) -> dict[str, Any]:
    hidden, ops = bench.scale.hidden, bench.device.ops
    weight = bench.device.prepare(_random(bench, hidden), WeightRole.NORM)
    row = rows * hidden * weight.element_size()

    def call() -> Call:
        x, residual = _random(bench, rows, hidden), _random(bench, rows, hidden)
        return lambda: ops.rms_norm(x, weight, 1e-5, residual)

    return _timed(bench, call, moved=4 * row)


def _rotary_write_kv(rows: int, bench: Bench) -> dict[str, Any]:
    scale, device = bench.scale, bench.device
    heads, kv_heads, size = scale.heads, scale.kv_heads, scale.head_size
    block_size = device.info.capabilities.block_sizes[0]
    dtype = DType(scale.dtype)
    layout = KVLayout(1, kv_heads, size, block_size, dtype, (None,), heads)
    table = RotaryTable(torch.rand(_POSITIONS, size, device=bench.torch_device) * 2 - 1)
    rng = np.random.default_rng(rows)
    positions = device.upload(rng.integers(_POSITIONS, size=rows).astype(np.int32))
    slots = device.upload(np.arange(block_size, block_size + rows, dtype=np.int32))

    def call() -> Call:
        qkv = _random(bench, rows, heads + 2 * kv_heads, size)
        q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        (kv,) = device.allocate_kv(layout, -(-rows // block_size) + 1)
        return lambda: device.ops.rotary_write_kv(q, k, v, positions, table, kv, slots)

    one = rows * (heads + 2 * kv_heads) * size * dtype.itemsize
    return _timed(bench, call, moved=2 * one + rows * size * 4)


def _gated_activation(rows: int, bench: Bench) -> dict[str, Any]:
    inner, ops = bench.scale.intermediate, bench.device.ops

    def call() -> Call:
        x = _random(bench, rows, 2 * inner)
        return lambda: ops.gated_activation(x, Activation.SILU)

    return _timed(bench, call, moved=3 * rows * inner * DType(bench.scale.dtype).itemsize)


def _linear(rows: int, bench: Bench) -> dict[str, Any]:
    """The gate and up projection, dense: the vendor's library."""
    outputs, inputs = 2 * bench.scale.intermediate, bench.scale.hidden
    x, device = _random(bench, rows, inputs), bench.device

    def call() -> Call:
        weight = device.prepare(DenseWeight(_random(bench, outputs, inputs)), WeightRole.LINEAR)
        return lambda: device.ops.linear(x, weight)

    moved = (outputs * inputs + rows * (inputs + outputs)) * x.element_size()
    return _timed(bench, call, moved=moved, flops=2 * rows * inputs * outputs)


def _quantized_linear(bits: int, rows: int, bench: Bench) -> dict[str, Any]:
    """The gate and up projection in groups, with an offset for each (as GPTQ, AWQ and GGUF's Q4_1 have them)."""
    outputs, inputs, group = 2 * bench.scale.intermediate, bench.scale.hidden, bench.scale.quantized_group
    x, device, where = _random(bench, rows, inputs), bench.device, bench.torch_device
    groups = inputs // group

    def call() -> Call:
        weight = QuantizedWeight(
            codes=torch.randint(256, (outputs, inputs * bits // 8), dtype=torch.uint8, device=where),
            scales=_random(bench, outputs, groups),
            offsets=_random(bench, outputs, groups),
            bits=bits,
            group_size=group,
        )
        prepared = device.prepare(weight, WeightRole.LINEAR)
        return lambda: device.ops.linear(x, prepared)

    weights = outputs * inputs * bits // 8 + 2 * outputs * groups * x.element_size()
    moved = weights + rows * (inputs + outputs) * x.element_size()
    return _timed(bench, call, moved=moved, flops=2 * rows * inputs * outputs)


def _mixture_of_experts(rows: int, bench: Bench) -> dict[str, Any]:
    """Mixtral's layer; the bytes are those of the experts that the rows chose."""
    count, chosen, hidden, inner = bench.scale.experts
    device = bench.device
    experts = device.prepare(
        ExpertWeights(
            DenseWeight(_random(bench, count, 2 * inner, hidden) * 0.02),
            DenseWeight(_random(bench, count, hidden, inner) * 0.02),
        ),
        WeightRole.EXPERTS,
    )
    x, router = _random(bench, rows, hidden), torch.randn(rows, count, device=bench.torch_device)
    used = len(set(router.topk(chosen).indices.flatten().tolist()))
    moved = (used * 3 * hidden * inner + 2 * rows * hidden) * x.element_size()
    calls = [lambda: device.ops.mixture_of_experts(x, router, experts, chosen)]
    timing = bench.clock.time(calls)
    return {**timing.figures(moved, 6 * rows * chosen * hidden * inner), "experts_used": used}


def _top_k(bench: Bench) -> dict[str, Any]:
    return _chosen(bench, bench.device.ops.top_k)


def _torch_top_k(bench: Bench) -> dict[str, Any]:
    return _chosen(bench, torch.topk)


def _chosen(bench: Bench, top_k: Callable[[torch.Tensor, int], object]) -> dict[str, Any]:
    rows, vocabulary, k = bench.scale.top_k

    def call() -> Call:
        x = torch.randn(rows, vocabulary, device=bench.torch_device)
        return lambda: top_k(x, k)

    return _timed(bench, call, moved=rows * (vocabulary * 4 + k * 8))


# ------------------------------------------------------------------------------------------------------------ details


def _timed(bench: Bench, call: Callable[[], Call], moved: int, flops: int = 0) -> dict[str, Any]:
    """Time calls on enough sets of data that no cache holds them; `call` makes one with data of its own."""
    sets = max(1, min(_MOST_SETS, math.ceil(bench.scale.rotated_bytes / moved)))
    figures: dict[str, Any] = bench.clock.time([call() for _ in range(sets)]).figures(moved, flops)
    return figures


def _random(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=bench.torch_device, dtype=getattr(torch, bench.scale.dtype))
