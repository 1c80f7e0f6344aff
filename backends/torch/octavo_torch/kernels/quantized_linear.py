"""Linear layers with quantized weights: codes are decoded in registers on their way into the matrix units.

Every coding of `QuantizedWeight` in groups of a multiple of 16 inputs. Integers (GGUF, GPTQ, AWQ) and float8 are
decoded by arithmetic, codebooks (NF4, MXFP4, IQ4_NL) by a lookup in a table that stays in the first-level cache, which
costs more. A weight is rounded once, to the dtype of x, after scale and offset were applied in float32.

A program computes one tile of the result, [outputs, rows]. Where the tiles of a few rows would leave processors idle,
the inputs are split among several programs too; a second launch then adds their float32 sums in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.backend import QuantizedWeight, array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.packed_weight import Coding, PackedQuantizedWeight, embedding, pack
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.tile_product import packed_product
from octavo_torch.kernels.tuning import Tunable

__all__ = [
    "KERNEL",
    "TUNABLE",
    "Coding",
    "PackedQuantizedWeight",
    "cost",
    "embedding",
    "pack",
    "quantized_linear",
]

TUNABLE = Tunable(
    "quantized_linear",
    facts=("dtype", "width", "coding", "rows"),
    defaults={"block_out": 64, "block_rows": 64, "programs": 4, "num_warps": 4, "num_stages": 2},
)
"""Facts: width, 4 or 8 bits of a code in memory; coding, "integer", "float8_e4m3", "float8_e5m2" or "codebook"; rows of
x, as a power of two of 16 at the least and 256 at the most. Parameters: block_out x block_rows is a program's tile;
inputs are split until a processor has this many programs."""

_SUM_COLUMNS = 512


def quantized_linear(runtime: KernelRuntime, x: torch.Tensor, weight: PackedQuantizedWeight) -> torch.Tensor:
    """`Ops.linear`: x @ W.T + bias. x [rows, in] -> [rows, out], in the dtype of x."""
    if weight.permutation is not None:
        x = x.index_select(1, weight.permutation)  # once, rather than by every program that reads x
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, out = x.shape[0], weight.out
    bucket = min(max(16, triton.next_power_of_2(rows)), 256)
    coding = weight.coding.name.lower()
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(x.dtype), width=weight.width, coding=coding, rows=bucket)
    block_out, block_rows = tuned["block_out"], min(bucket, tuned["block_rows"])
    grid = (triton.cdiv(out, block_out), triton.cdiv(rows, block_rows))
    wanted = runtime.target.processors * tuned["programs"] // max(1, grid[0] * grid[1])
    per_split = triton.cdiv(weight.tiles, max(1, min(wanted, weight.tiles)))
    splits = triton.cdiv(weight.tiles, per_split)
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    sums = y if splits == 1 else torch.empty((splits, rows, out), dtype=torch.float32, device=x.device)
    runtime.launch(
        _kernel,
        (*grid, splits),
        {
            "x": x,
            "words": weight.words,
            "scales": weight.scales,
            "offsets": weight.offsets,
            "codebook": weight.codebook,
            "bias": weight.bias if splits == 1 else None,
            "y": sums,
            "rows": rows,
            "out": out,
            "inputs": weight.inputs,
            "tiles": weight.tiles,
            "per_split": per_split,
            "x_stride": x.stride(0),
            "OUT": block_out,
            "ROWS": block_rows,
            "SPAN": weight.span,
            "RUN": weight.run,
            "GROUP": weight.group_size,
            "WIDTH": weight.width,
            "CODING": weight.coding.value,
            "PADDED": weight.padded,
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
        num_stages=tuned["num_stages"],
    )
    if splits > 1:
        _add(runtime, sums, weight.bias, y)
    return y


def cost(rows: int, weight: PackedQuantizedWeight, itemsize: int) -> Cost:
    """Of one call."""
    return Cost(
        read=weight.nbytes + rows * weight.inputs * itemsize,
        written=rows * weight.out * itemsize,
        flops=2 * rows * weight.inputs * weight.out,
    )


def _add(runtime: KernelRuntime, sums: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """y = the sum of sums [splits, rows, out], and the bias."""
    splits, rows, out = sums.shape
    runtime.launch(
        _add_kernel,
        (triton.cdiv(out, _SUM_COLUMNS), rows),
        {
            "sums": sums,
            "bias": bias,
            "y": y,
            "splits": splits,
            "rows": rows,
            "out": out,
            "COLUMNS": _SUM_COLUMNS,
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=4,
    )


@triton.jit(do_not_specialize=["rows", "per_split"])
def _kernel(
    x,
    words,
    scales,
    offsets,
    codebook,
    bias,
    y,
    rows,
    out,
    inputs,
    tiles,
    per_split,
    x_stride,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    RUN: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CODING: tl.constexpr,
    PADDED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column = (tl.program_id(0) * OUT + tl.arange(0, OUT)).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    split = tl.program_id(2)
    first = split * per_split
    last = tl.minimum(first + per_split, tiles)
    column_inside, row_inside = column < out, row < rows
    value = packed_product(
        x,
        row * x_stride,
        row_inside,
        words,
        scales,
        offsets,
        codebook,
        None,
        column,
        column_inside,
        first,
        last,
        out,
        inputs,
        OUT,
        ROWS,
        SPAN,
        RUN,
        GROUP,
        WIDTH,
        CODING,
        PADDED,
        INTERPRETED,
    )
    if bias is not None:
        value += tl.load(bias + column, mask=column_inside, other=0.0).to(tl.float32)[:, None]
    place = (split.to(tl.int64) * rows + row)[None, :] * out + column[:, None]
    value = rounded(value, y.dtype.element_ty, INTERPRETED)
    tl.store(y + place, value, mask=column_inside[:, None] & row_inside[None, :])


@triton.jit(do_not_specialize=["splits", "rows"])
def _add_kernel(sums, bias, y, splits, rows, out, COLUMNS: tl.constexpr, INTERPRETED: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1).to(tl.int64)
    inside = column < out
    value = tl.zeros([COLUMNS], tl.float32)
    for split in range(splits):
        value += tl.load(sums + (row + split * rows) * out + column, mask=inside, other=0.0)
    if bias is not None:
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * out + column, rounded(value, y.dtype.element_ty, INTERPRETED), mask=inside)


# --------------------------------------------------------------------------------------------------------- specimens


@dataclass(frozen=True, slots=True)
class _Format:
    """A way to quantize, as files have it."""

    name: str
    bits: int
    group_size: int
    offsets: bool = True
    codebook: bool = False
    permutation: bool = False
    float8: torch.dtype | None = None


_FORMATS = (
    _Format("gptq", 4, 128, permutation=True),
    _Format("q4_1", 4, 32),
    _Format("nf4", 4, 64, offsets=False, codebook=True),
    _Format("q6_k", 6, 16, offsets=False),
    _Format("int8", 8, 128),
    _Format("float8_e4m3", 8, 128, offsets=False, float8=torch.float8_e4m3fn),
    _Format("float8_e5m2", 8, 128, offsets=False, float8=torch.float8_e5m2),
)


def specimens() -> Iterator[Specimen]:
    """The codings of files for a layer of an 8B model, from one row to a prefill; all dtypes for the usual ones."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        usual = (_FORMATS[0], _FORMATS[4])  # of each width one
        for form in _FORMATS if dtype is torch.bfloat16 else usual:
            for rows in (1, 32, 64, 128, 2048) if form in usual and dtype is torch.bfloat16 else (1, 2048):
                name = f"{dtype_name(dtype)},{form.name},rows={rows}"
                yield Specimen(name, _call(dtype, form, rows, 4096, 4096))
    yield Specimen("bfloat16,q4_1,rows=1,in=576", _call(torch.bfloat16, _FORMATS[1], 1, 1536, 576))


def _call(dtype: torch.dtype, form: _Format, rows: int, out: int, inputs: int) -> Callable[[KernelRuntime], object]:
    def call(runtime: KernelRuntime) -> object:
        scales = torch.empty((out, inputs // form.group_size), dtype=torch.float16, device="meta")
        columns = inputs // 2 if form.bits == 4 else inputs
        weight = pack(
            QuantizedWeight(
                codes=torch.empty((out, columns), dtype=form.float8 or torch.uint8, device="meta"),
                scales=scales,
                offsets=torch.empty_like(scales) if form.offsets else None,
                bits=form.bits,
                group_size=form.group_size,
                codebook=torch.empty(1 << form.bits, dtype=torch.float16, device="meta") if form.codebook else None,
                permutation=torch.empty(inputs, dtype=torch.int32, device="meta") if form.permutation else None,
            )
        )
        assert isinstance(weight, PackedQuantizedWeight)
        return quantized_linear(runtime, torch.empty((rows, inputs), dtype=dtype, device="meta"), weight)

    return call


KERNEL = Kernel("quantized_linear", array_ops.linear, (TUNABLE,), specimens)
