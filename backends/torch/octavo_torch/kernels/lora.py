"""Low-rank adapters (Hu et al. 2021) for rows of mixed adapters, in two products: shrink and expand.

Few rows, as in decode: each row is a tile of its own, which reads its own adapter (Punica's BGMV, Chen et al. 2023).
Many rows, as in prefill: rows are grouped by adapter, and a tile of them reads it once (SGMV). Both run the same two
kernels, which differ in how a program finds its rows. Shrink splits the inputs among programs where there are few tiles
to fill the processors with, and expand adds up its float32 sums: no third launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import LoRABank, array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.precision import dot, rounded
from octavo_torch.kernels.row_groups import CHUNK, RowGroups, count_rows, group_rows, tile_rows
from octavo_torch.kernels.tile_product import dense_product
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable(
    "lora",
    facts=("dtype", "rank"),
    defaults={
        "grouped_from": 128,
        "block_rows": 64,
        "block_in": 128,
        "block_out": 64,
        "programs": 2,
        "num_warps": 4,
        "num_stages": 2,
    },
)
"""grouped_from: rows from which they are grouped by adapter, in tiles of block_rows. block_in: inputs of one step of
shrink, which is split until a processor has `programs`. block_out: outputs of a program of expand."""

_LEAST = 16
"""Rows, and ranks, that matrix units work on at the least."""


def lora(
    runtime: KernelRuntime, x: torch.Tensor, y: torch.Tensor, bank: LoRABank, adapter_ids: torch.Tensor
) -> torch.Tensor:
    """`Ops.lora`. x [rows, in], y [rows, out], adapter_ids int32 [rows], -1 for y as it is -> [rows, out]."""
    x = x.to(bank.a.dtype)
    x, y = (each if each.stride(1) == 1 else each.contiguous() for each in (x, y))
    a, b = bank.a.contiguous(), bank.b.contiguous()
    adapters, rank, _ = a.shape
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(a.dtype), rank=rank)
    if x.shape[0] < tuned["grouped_from"]:
        where = {"order": adapter_ids, "tiles": None, "used": None}
        tiles, block = x.shape[0], _LEAST
    else:
        groups = _by_adapter(runtime, adapter_ids, adapters, tuned["block_rows"])
        where = {"order": groups.order, "tiles": groups.tiles, "used": groups.used}
        tiles, block = groups.most, groups.block
    shared = {**where, "rows": x.shape[0], "adapters": adapters, "rank": rank, "ROWS": block}
    shrunk = _shrink(runtime, tuned, x, a, shared, tiles)
    return _expand(runtime, tuned, shrunk, y, b, shared, tiles)


def cost(rows: int, used: int, bank: LoRABank, itemsize: int) -> Cost:
    """Of one call in which `used` adapters have rows, and all rows have one."""
    adapters, rank, inputs = bank.a.shape
    out = bank.b.shape[1]
    weights = (bank.a.nbytes + bank.b.nbytes) * used // adapters
    return Cost(
        read=weights + rows * (inputs + out) * itemsize,
        written=rows * out * itemsize,
        flops=2 * rows * rank * (inputs + out),
    )


def _by_adapter(runtime: KernelRuntime, adapter_ids: torch.Tensor, adapters: int, block: int) -> RowGroups:
    """Rows grouped by adapter; those without one are the last group."""
    counts = count_rows(runtime, adapter_ids, adapters + 1)
    return group_rows(runtime, adapter_ids, counts, CHUNK, block)


def _shrink(
    runtime: KernelRuntime, tuned: dict[str, int], x: torch.Tensor, a: torch.Tensor, shared: dict[str, Any], tiles: int
) -> torch.Tensor:
    """A @ x of each row, in parts to be added up: float32 [splits, rows, rank]."""
    rows, inputs = x.shape
    steps = triton.cdiv(inputs, tuned["block_in"])
    wanted = runtime.target.processors * tuned["programs"] // max(1, tiles)
    per_split = triton.cdiv(steps, max(1, min(wanted, steps)))
    splits = triton.cdiv(steps, per_split)
    shrunk = torch.empty((splits, rows, shared["rank"]), dtype=torch.float32, device=x.device)
    runtime.launch(
        _shrink_kernel,
        (tiles, splits),
        {
            "x": x,
            "a": a,
            "shrunk": shrunk,
            **shared,
            "inputs": inputs,
            "per_split": per_split,
            "x_stride": x.stride(0),
            "RANK": _padded(shared["rank"]),
            "IN": tuned["block_in"],
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
        num_stages=tuned["num_stages"],
    )
    return shrunk


def _expand(
    runtime: KernelRuntime,
    tuned: dict[str, int],
    shrunk: torch.Tensor,
    y: torch.Tensor,
    b: torch.Tensor,
    shared: dict[str, Any],
    tiles: int,
) -> torch.Tensor:
    """y + B @ shrunk of each row."""
    out = y.shape[1]
    result = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    runtime.launch(
        _expand_kernel,
        (triton.cdiv(out, tuned["block_out"]), tiles),
        {
            "shrunk": shrunk,
            "y": y,
            "b": b,
            "result": result,
            **shared,
            "out": out,
            "splits": shrunk.shape[0],
            "y_stride": y.stride(0),
            "RANK": _padded(shared["rank"]),
            "OUT": tuned["block_out"],
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
    )
    return result


def _padded(rank: int) -> int:
    padded: int = max(_LEAST, triton.next_power_of_2(rank))
    return padded


@triton.jit
def _rows_of(order, tiles, tile, adapters, ROWS: tl.constexpr):
    """A tile's adapter, its rows and which of them there are; an adapter that is none is `adapters` or -1.

    Without tiles, `order` is the adapter of each row, and each row a tile.
    """
    if tiles is None:
        adapter = tl.load(order + tile)
        lane = tl.arange(0, ROWS)
        row, inside = tile + lane, lane < 1
    else:
        adapter, _, row, inside = tile_rows(order, tiles, tile, ROWS)
    return adapter, row.to(tl.int64), inside


@triton.jit(do_not_specialize=["rows", "adapters", "per_split"])
def _shrink_kernel(
    x,
    a,
    shrunk,
    order,
    tiles,
    used,
    rows,
    adapters,
    rank,
    inputs,
    per_split,
    x_stride,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    IN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    if used is not None:  # noqa: SIM102 - decided when the kernel is compiled, unlike the next line
        if tile >= tl.load(used):
            return
    adapter, row, inside = _rows_of(order, tiles, tile, adapters, ROWS)
    if (adapter < 0) | (adapter == adapters):
        return
    direction = tl.arange(0, RANK).to(tl.int64)
    steps = (inputs + IN - 1) // IN
    first = split * per_split
    value = dense_product(
        x,
        row * x_stride,
        inside,
        a,
        (adapter.to(tl.int64) * rank + direction) * inputs,
        direction < rank,
        first,
        tl.minimum(first + per_split, steps),
        inputs,
        RANK,
        ROWS,
        IN,
        INTERPRETED,
    )
    target = shrunk + (split.to(tl.int64) * rows + row)[None, :] * rank + direction[:, None]
    tl.store(target, value, mask=inside[None, :] & (direction < rank)[:, None])


@triton.jit(do_not_specialize=["rows", "adapters", "splits"])
def _expand_kernel(
    shrunk,
    y,
    b,
    result,
    order,
    tiles,
    used,
    rows,
    adapters,
    rank,
    out,
    splits,
    y_stride,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    OUT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    tile = tl.program_id(1)
    if used is not None:  # noqa: SIM102 - decided when the kernel is compiled, unlike the next line
        if tile >= tl.load(used):
            return
    adapter, row, inside = _rows_of(order, tiles, tile, adapters, ROWS)
    column = (tl.program_id(0) * OUT + tl.arange(0, OUT)).to(tl.int64)
    shown = inside[None, :] & (column < out)[:, None]
    value = tl.load(y + row[None, :] * y_stride + column[:, None], mask=shown, other=0.0)
    if (adapter >= 0) & (adapter < adapters):
        direction = tl.arange(0, RANK)
        known = inside[None, :] & (direction < rank)[:, None]
        part = shrunk + row[None, :] * rank + direction[:, None]
        low = tl.zeros([RANK, ROWS], tl.float32)
        for _ in range(splits):
            low += tl.load(part, mask=known, other=0.0)
            part += rows.to(tl.int64) * rank
        up = tl.load(
            b + (adapter.to(tl.int64) * out + column)[:, None] * rank + direction[None, :],
            mask=(column < out)[:, None] & (direction < rank)[None, :],
            other=0.0,
        )
        total = dot(up, rounded(low, up.dtype, INTERPRETED), value.to(tl.float32), INTERPRETED)
        value = rounded(total, value.dtype, INTERPRETED)
    tl.store(result + row[None, :] * out + column[:, None], value, mask=shown)


# --------------------------------------------------------------------------------------------------------- specimens


def specimens() -> Iterator[Specimen]:
    """Adapters of a layer of an 8B model, one row alone and a prefill."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rank in (16, 64) if dtype is not torch.float16 else (16,):
            for rows in (1, 2048):
                yield Specimen(f"{dtype_name(dtype)},rank={rank},rows={rows}", _call(dtype, rank, rows))


def _call(dtype: torch.dtype, rank: int, rows: int) -> Callable[[KernelRuntime], object]:
    def call(runtime: KernelRuntime) -> object:
        x, y = (torch.empty((rows, size), dtype=dtype, device="meta") for size in (4096, 6144))
        a = torch.empty((8, rank, 4096), dtype=dtype, device="meta")
        b = torch.empty((8, 6144, rank), dtype=dtype, device="meta")
        return lora(runtime, x, y, LoRABank(a, b), torch.empty(rows, dtype=torch.int32, device="meta"))

    return call


KERNEL = Kernel("lora", array_ops.lora, (TUNABLE,), specimens)
