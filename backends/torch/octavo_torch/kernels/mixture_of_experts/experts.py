"""The experts' two products on rows grouped by expert, their weights dense or quantized.

The first takes a token's row for each of its experts and applies the gated activation: a tile has an output of the gate
beside that of `up` with the same index, and what it stores is half as wide. The second takes those rows where they lie,
in order of experts, and puts each back to its token-expert pair, weighted with the token's share.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import triton
import triton.language as tl

from octavo.backend import Activation, DenseWeight
from octavo_torch.kernels.gated_activation import activated
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.packed_weight import PackedQuantizedWeight
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.row_groups import RowGroups, tile_rows
from octavo_torch.kernels.tile_product import dense_product, packed_product
from octavo_torch.kernels.tuning import Tunable

ExpertMatrix: TypeAlias = DenseWeight | PackedQuantizedWeight
"""The matrices of all experts, [experts, out, in]."""


def gate_up(
    runtime: KernelRuntime,
    tunable: Tunable,
    x: torch.Tensor,
    weight: ExpertMatrix,
    activation: Activation,
    groups: RowGroups,
    top_k: int,
) -> torch.Tensor:
    """activation(gate) * up of each token-expert pair, in the order of groups: [pairs, intermediate]."""
    y = torch.empty((groups.order.shape[0], _out(weight) // 2), dtype=x.dtype, device=x.device)
    _launch(runtime, tunable, x, weight, y, None, activation, groups, top_k)
    return y


def down(
    runtime: KernelRuntime,
    tunable: Tunable,
    x: torch.Tensor,
    weight: ExpertMatrix,
    shares: torch.Tensor,
    groups: RowGroups,
) -> torch.Tensor:
    """x [pairs, intermediate] as `gate_up` gives it -> [pairs, hidden], weighted, a token's pairs together."""
    y = torch.empty((x.shape[0], _out(weight)), dtype=x.dtype, device=x.device)
    _launch(runtime, tunable, x, weight, y, shares, None, groups, 1)
    return y


def bits_of(weight: ExpertMatrix) -> int:
    """Bits of an entry in memory."""
    if isinstance(weight, PackedQuantizedWeight):
        return weight.width
    return 8 * int(weight.array.element_size())


def _out(weight: ExpertMatrix) -> int:
    return weight.out if isinstance(weight, PackedQuantizedWeight) else int(weight.array.shape[1])


def _launch(
    runtime: KernelRuntime,
    tunable: Tunable,
    x: torch.Tensor,
    weight: ExpertMatrix,
    y: torch.Tensor,
    shares: torch.Tensor | None,
    activation: Activation | None,
    groups: RowGroups,
    top_k: int,
) -> None:
    out, inputs = _out(weight), x.shape[1]
    tuned = runtime.tuned(tunable, dtype=dtype_name(x.dtype), bits=bits_of(weight), rows=groups.block)
    arguments = {
        "x": x,
        "weight": weight.words if isinstance(weight, PackedQuantizedWeight) else weight.array.contiguous(),
        "bias": weight.bias,
        "y": y,
        "shares": shares,
        "order": groups.order,
        "tiles": groups.tiles,
        "used": groups.used,
        "out": out,
        "inputs": inputs,
        "x_stride": x.stride(0),
        "TOP_K": top_k,
        "ACTIVATION": None if activation is None else activation.value,
        "OUT": tuned["block_out"],
        "ROWS": groups.block,
        "IN": tuned["block_in"],
        **_quantization(weight),
        "INTERPRETED": runtime.target.interpreted,
    }
    grid = (triton.cdiv(out, tuned["block_out"]), groups.most)
    runtime.launch(_product_kernel, grid, arguments, num_warps=tuned["num_warps"], num_stages=tuned["num_stages"])


def _quantization(weight: ExpertMatrix) -> dict[str, object]:
    """What the kernel has to know of a packed weight; nothing of a dense one."""
    if not isinstance(weight, PackedQuantizedWeight):
        names = ("scales", "offsets", "codebook", "permutation", "SPAN", "RUN", "GROUP", "WIDTH", "CODING", "PADDED")
        return dict.fromkeys(names)
    return {
        "scales": weight.scales,
        "offsets": weight.offsets,
        "codebook": weight.codebook,
        "permutation": weight.permutation,
        "SPAN": weight.span,
        "RUN": weight.run,
        "GROUP": weight.group_size,
        "WIDTH": weight.width,
        "CODING": weight.coding.value,
        "PADDED": weight.padded,
    }


@triton.jit
def _product_kernel(
    x,
    weight,
    scales,
    offsets,
    codebook,
    permutation,
    bias,
    y,
    shares,
    order,
    tiles,
    used,
    out,
    inputs,
    x_stride,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    SPAN: tl.constexpr,
    RUN: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CODING: tl.constexpr,
    PADDED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    if tl.program_id(1) >= tl.load(used):
        return
    expert, start, pair, inside = tile_rows(order, tiles, tl.program_id(1), ROWS)
    expert = expert.to(tl.int64)
    place = start + tl.arange(0, ROWS)
    lane = tl.arange(0, OUT)
    if ACTIVATION is not None:
        x_row, y_row = pair // TOP_K, place
        width = out // 2
        unit = tl.program_id(0) * (OUT // 2) + lane // 2
        row = unit + lane % 2 * width
        row_inside = unit < width
    else:
        x_row, y_row = place, pair
        width = out
        row = tl.program_id(0) * OUT + lane
        row_inside = row < out
    x_rows = x_row.to(tl.int64) * x_stride
    row = row.to(tl.int64)
    if scales is None:
        value = dense_product(
            x,
            x_rows,
            inside,
            weight,
            (expert * out + row) * inputs,
            row_inside,
            0,
            (inputs + IN - 1) // IN,
            inputs,
            OUT,
            ROWS,
            IN,
            INTERPRETED,
        )
    else:
        words_of_one = (inputs + 32 // WIDTH * SPAN - 1) // (32 // WIDTH * SPAN) * out * SPAN
        scales_of_one = inputs // GROUP * out
        if offsets is not None:
            offsets += expert * scales_of_one
        if permutation is not None:
            permutation += expert * inputs
        value = packed_product(
            x,
            x_rows,
            inside,
            weight + expert * words_of_one,
            scales + expert * scales_of_one,
            offsets,
            codebook,
            permutation,
            row,
            row_inside,
            0,
            (inputs + 32 // WIDTH * SPAN - 1) // (32 // WIDTH * SPAN),
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
        value += tl.load(bias + expert * out + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION is not None:
        pairs = tl.permute(tl.reshape(value, [OUT // 2, 2, ROWS]), (0, 2, 1))
        gate, up = tl.split(pairs)
        value = activated(gate, ACTIVATION) * up
        column = tl.program_id(0) * (OUT // 2) + tl.arange(0, OUT // 2)
    else:
        value *= tl.load(shares + pair, mask=inside, other=0.0)[None, :]
        column = tl.program_id(0) * OUT + lane
    target = y + y_row.to(tl.int64)[None, :] * width + column[:, None]
    value = rounded(value, y.dtype.element_ty, INTERPRETED)
    tl.store(target, value, mask=inside[None, :] & (column < width)[:, None])
