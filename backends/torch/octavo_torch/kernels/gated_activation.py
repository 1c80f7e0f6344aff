"""The gated activations of feed-forward layers (Shazeer 2020): activation(gate) * up in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import Activation, array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable("gated_activation", facts=("dtype", "intermediate"), defaults={"columns": 1024, "num_warps": 4})
"""columns: results of one program, all of one row; a power of two."""


def gated_activation(runtime: KernelRuntime, x: torch.Tensor, kind: Activation) -> torch.Tensor:
    """`Ops.gated_activation`. x [tokens, 2 * intermediate], the last axis contiguous -> [tokens, intermediate]."""
    tokens, intermediate = x.shape[0], x.shape[1] // 2
    result = torch.empty((tokens, intermediate), dtype=x.dtype, device=x.device)
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(x.dtype), intermediate=intermediate)
    columns = min(tuned["columns"], triton.next_power_of_2(intermediate))
    parts = triton.cdiv(intermediate, columns)
    runtime.launch(
        _kernel,
        (tokens * parts,),
        {
            "x": x,
            "result": result,
            "x_stride": x.stride(0),
            "INTERMEDIATE": intermediate,
            "KIND": kind.value,
            "PARTS": parts,
            "COLUMNS": columns,
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
    )
    return result


def cost(tokens: int, intermediate: int, itemsize: int) -> Cost:
    """Of one call; an activation is counted as the eight operations of SiLU's exponential and division."""
    size = tokens * intermediate
    return Cost(read=2 * size * itemsize, written=size * itemsize, flops=size * 9)


@triton.jit
def _kernel(
    x,
    result,
    x_stride,
    INTERMEDIATE: tl.constexpr,
    KIND: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # Neighbouring programs read neighbouring parts of a row.
    token = (tl.program_id(0) // PARTS).to(tl.int64)
    column = tl.program_id(0) % PARTS * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < INTERMEDIATE
    row = x + token * x_stride
    gate = tl.load(row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + INTERMEDIATE + column, mask=inside, other=0.0).to(tl.float32)
    value = rounded(activated(gate, KIND) * up, result.dtype.element_ty, INTERPRETED)
    tl.store(result + token * INTERMEDIATE + column, value, mask=inside)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """The activation of that name (`Activation`'s value), float32 to float32; accurate however large x is."""
    if KIND == "silu":
        y = x * _logistic(x)
    elif KIND == "gelu_tanh":
        # Hendrycks and Gimpel 2016. (1 + tanh(u)) / 2 is the logistic function of 2u, without the difference of
        # nearly equal numbers where tanh is close to -1; 2 * sqrt(2 / pi) = 1.5957...
        y = x * _logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(KIND == "relu")
        y = tl.where(x < 0.0, 0.0, x)  # a NaN stays one
    return y


@triton.jit
def _logistic(x):
    """1 / (1 + exp(-x)) with an exponential that never overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


def specimens() -> Iterator[Specimen]:
    """The sizes of Llama-3-8B and of a small model, and each activation."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for intermediate in (1536, 14336):
            yield _specimen(dtype, intermediate, Activation.SILU)
    for kind in (Activation.GELU, Activation.GELU_TANH, Activation.RELU):
        yield _specimen(torch.bfloat16, 14336, kind)


def _specimen(dtype: torch.dtype, intermediate: int, kind: Activation) -> Specimen:
    def call(runtime: KernelRuntime) -> Any:
        return gated_activation(runtime, torch.empty((256, 2 * intermediate), dtype=dtype, device="meta"), kind)

    return Specimen(f"{dtype_name(dtype)},intermediate={intermediate},{kind.value}", call)


KERNEL = Kernel("gated_activation", array_ops.gated_activation, (TUNABLE,), specimens)
