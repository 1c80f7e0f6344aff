"""Root-mean-square norm fused with the residual addition: each row is read once and written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable("rms_norm", facts=("dtype", "hidden"), defaults={"rows": 1, "num_warps": 4})
"""rows: rows of one program; several where rows are short (the norms of q and k)."""


def rms_norm(
    runtime: KernelRuntime, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Ops.rms_norm`. x [..., hidden], the last axis contiguous: [tokens, hidden] and [tokens, heads, hidden] may be
    slices of a larger array, such as q and k of a fused projection.
    """
    hidden = x.shape[-1]
    heads = _heads(x)  # [tokens, heads, hidden]
    other = None if residual is None else _heads(residual)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if other is None else torch.empty_like(normed)
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(x.dtype), hidden=hidden)
    count, per_program = heads.shape[0] * heads.shape[1], tuned["rows"]
    runtime.launch(
        _kernel,
        (triton.cdiv(count, per_program),),
        {
            "x": heads,
            "residual": other,
            "weight": weight,
            "normed": normed,
            "total": total,
            "eps": eps,
            "count": count,
            "x_token": heads.stride(0),
            "x_head": heads.stride(1),
            "residual_token": 0 if other is None else other.stride(0),
            "residual_head": 0 if other is None else other.stride(1),
            "SIZE": hidden,
            "HEADS": heads.shape[1],
            "ROWS": per_program,
            "COLUMNS": triton.next_power_of_2(hidden),
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
    )
    return normed, (x if total is None else total)


def cost(rows: int, hidden: int, itemsize: int, residual: bool) -> Cost:
    """Of one call."""
    row = hidden * itemsize
    read = rows * row * (2 if residual else 1) + row
    return Cost(read=read, written=rows * row * (2 if residual else 1), flops=rows * hidden * (5 if residual else 4))


def _heads(x: torch.Tensor) -> torch.Tensor:
    """[..., hidden] as [tokens, heads, hidden], without a copy where x has two or three axes."""
    return x if x.ndim == 3 else x.reshape(-1, 1, x.shape[-1])


@triton.jit(do_not_specialize=["count"])
def _kernel(
    x,
    residual,
    weight,
    normed,
    total,
    eps,
    count,
    x_token,
    x_head,
    residual_token,
    residual_head,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = (row // HEADS).to(tl.int64), row % HEADS
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < count) & (column < SIZE)
    result = row.to(tl.int64) * SIZE + column
    dtype = normed.dtype.element_ty
    value = tl.load(x + token * x_token + head * x_head + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        place = token * residual_token + head * residual_head + column
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        # The sum goes on as it is stored: the next layer adds to the rounded one too.
        value = rounded(value, dtype, INTERPRETED)
        tl.store(total + result, value, mask=inside)
        value = value.to(tl.float32)
    mean = tl.sum(value * value, 1) / SIZE
    scale = tl.rsqrt(mean + eps)[:, None]
    gain = tl.load(weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    tl.store(normed + result, rounded(value * scale * gain, dtype, INTERPRETED), mask=inside)


def specimens() -> Iterator[Specimen]:
    """Hidden sizes of models from 135M to 70B parameters, and the norms of heads in a fused projection."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield Specimen(f"{dtype_name(dtype)},heads=32x128", _norm_of_heads(dtype))
        for hidden in (576, 4096, 8192):
            yield Specimen(f"{dtype_name(dtype)},hidden={hidden},residual", _norm_of_sum(dtype, hidden))


def _norm_of_sum(dtype: torch.dtype, hidden: int) -> Callable[[KernelRuntime], Any]:
    def call(runtime: KernelRuntime) -> Any:
        x, residual = torch.empty((2, 256, hidden), dtype=dtype, device="meta")
        return rms_norm(runtime, x, torch.empty((hidden,), dtype=dtype, device="meta"), 1e-5, residual)

    return call


def _norm_of_heads(dtype: torch.dtype) -> Callable[[KernelRuntime], Any]:
    def call(runtime: KernelRuntime) -> Any:
        q = torch.empty((256, 48, 128), dtype=dtype, device="meta")[:, :32]
        return rms_norm(runtime, q, torch.empty((128,), dtype=dtype, device="meta"), 1e-5, None)

    return call


KERNEL = Kernel("rms_norm", array_ops.rms_norm, (TUNABLE,), specimens)
