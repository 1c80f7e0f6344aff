"""The whole layer in five launches: route, group, gate and up, down, sum.

The experts' rows are neither padded nor copied: the products read tokens by index and write pairs by index. Nothing is
summed by atomics, so the same batch gives the same bits. The largest intermediate is [tokens * top_k, hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

from octavo.backend import DenseWeight, ExpertWeights, QuantizedWeight, Weight, array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.mixture_of_experts.experts import ExpertMatrix, bits_of, down, gate_up
from octavo_torch.kernels.mixture_of_experts.router import route
from octavo_torch.kernels.packed_weight import PackedQuantizedWeight, pack
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.row_groups import group_rows
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable(
    "mixture_of_experts",
    facts=("dtype", "bits", "rows"),
    defaults={"block_out": 64, "block_rows": 64, "block_in": 64, "num_warps": 4, "num_stages": 2},
)
"""Facts: bits of an entry of the weights in memory; rows of an expert if tokens spread evenly, as a power of two of 16
at the least and 128 at the most. Parameters: block_out x block_rows is a program's tile; block_in, the inputs of a step
where weights are dense. Both products work on the same tiles of rows, and gate_up's weights decide on block_rows."""

_SUM_COLUMNS = 1024


def takes(x: torch.Tensor, experts: ExpertWeights) -> bool:
    """Whether the kernels are for these weights: dense ones of the dtype of x, and those that `pack` packed."""
    return all(
        isinstance(weight, PackedQuantizedWeight) or (isinstance(weight, DenseWeight) and weight.array.dtype == x.dtype)
        for weight in (experts.gate_up, experts.down)
    )


def mixture_of_experts(
    runtime: KernelRuntime, x: torch.Tensor, router_logits: torch.Tensor, experts: ExpertWeights, top_k: int
) -> torch.Tensor:
    """`Ops.mixture_of_experts`, for weights that it `takes`. x [tokens, hidden], router_logits [tokens, experts]."""
    first, second = _matrix(experts.gate_up), _matrix(experts.down)
    x, router_logits = (each if each.stride(1) == 1 else each.contiguous() for each in (x, router_logits))
    tokens, count = router_logits.shape
    fair = triton.cdiv(tokens * top_k, count)
    bucket = min(max(16, triton.next_power_of_2(fair)), 128)
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(x.dtype), bits=bits_of(first), rows=bucket)
    routing = route(runtime, router_logits, top_k, experts.renormalize)
    block = min(bucket, tuned["block_rows"])
    groups = group_rows(runtime, routing.experts, routing.counts, routing.chunk, block)
    inner = gate_up(runtime, TUNABLE, x, first, experts.activation, groups, top_k)
    pairs = down(runtime, TUNABLE, inner, second, routing.shares, groups)
    return pairs if top_k == 1 else _sum(runtime, pairs, top_k)


def cost(tokens: int, top_k: int, used: int, gate_up: ExpertMatrix, down: ExpertMatrix, itemsize: int) -> Cost:
    """Of one call in which `used` of the experts were chosen; intermediates are not counted."""
    experts, width, hidden = _shape(gate_up)
    intermediate = width // 2
    weights = (_nbytes(gate_up) + _nbytes(down)) * used // experts
    return Cost(
        read=weights + tokens * (hidden + experts) * itemsize,
        written=tokens * hidden * itemsize,
        flops=6 * tokens * top_k * hidden * intermediate,
    )


def _sum(runtime: KernelRuntime, pairs: torch.Tensor, top_k: int) -> torch.Tensor:
    """pairs [tokens * top_k, hidden] -> [tokens, hidden]."""
    tokens, hidden = pairs.shape[0] // top_k, pairs.shape[1]
    y = torch.empty((tokens, hidden), dtype=pairs.dtype, device=pairs.device)
    columns = min(_SUM_COLUMNS, triton.next_power_of_2(hidden))
    runtime.launch(
        _sum_kernel,
        (tokens, triton.cdiv(hidden, columns)),
        {
            "pairs": pairs,
            "y": y,
            "hidden": hidden,
            "TOP_K": top_k,
            "COLUMNS": columns,
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=4,
    )
    return y


def _matrix(weight: Weight) -> ExpertMatrix:
    if isinstance(weight, DenseWeight | PackedQuantizedWeight):
        return weight
    raise TypeError(f"The experts' weights are DenseWeight or PackedQuantizedWeight here, not {type(weight).__name__}.")


def _shape(weight: ExpertMatrix) -> tuple[int, int, int]:
    if isinstance(weight, PackedQuantizedWeight):
        return weight.words.shape[0], weight.out, weight.inputs
    experts, out, inputs = weight.array.shape
    return experts, out, inputs


def _nbytes(weight: ExpertMatrix) -> int:
    return weight.nbytes if isinstance(weight, PackedQuantizedWeight) else int(weight.array.nbytes)


@triton.jit
def _sum_kernel(pairs, y, hidden, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, INTERPRETED: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < hidden
    total = tl.zeros([COLUMNS], tl.float32)
    for k in range(TOP_K):
        total += tl.load(pairs + (token * TOP_K + k) * hidden + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + token * hidden + column, rounded(total, y.dtype.element_ty, INTERPRETED), mask=inside)


# --------------------------------------------------------------------------------------------------------- specimens


def specimens() -> Iterator[Specimen]:
    """A layer of Mixtral and one of Qwen3-30B-A3B, from one token to a prefill, dense and in four bits."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for tokens in (1, 512, 1024, 2048) if dtype is torch.bfloat16 else (1, 2048):
            for bits in (16, 4) if dtype is torch.bfloat16 else (16,):
                name = f"{dtype_name(dtype)},{'dense' if bits == 16 else 'int4'},tokens={tokens}"
                yield Specimen(f"{name},8of128", _call(dtype, tokens, 128, 8, 2048, 768, bits))
    yield Specimen("bfloat16,dense,tokens=1,2of8", _call(torch.bfloat16, 1, 8, 2, 4096, 14336, 16))


def _call(
    dtype: torch.dtype, tokens: int, experts: int, top_k: int, hidden: int, intermediate: int, bits: int
) -> Callable[[KernelRuntime], object]:
    def matrix(out: int, inputs: int) -> object:
        if bits == 16:
            return DenseWeight(torch.empty((experts, out, inputs), dtype=dtype, device="meta"))
        codes = torch.empty((experts, out, inputs // 2), dtype=torch.uint8, device="meta")
        scales = torch.empty((experts, out, inputs // 128), dtype=dtype, device="meta")
        return pack(QuantizedWeight(codes, scales, torch.empty_like(scales), bits, group_size=128))

    def call(runtime: KernelRuntime) -> object:
        weights = ExpertWeights(matrix(2 * intermediate, hidden), matrix(hidden, intermediate))
        x = torch.empty((tokens, hidden), dtype=dtype, device="meta")
        logits = torch.empty((tokens, experts), dtype=dtype, device="meta")
        return mixture_of_experts(runtime, x, logits, weights, top_k)

    return call


KERNEL = Kernel("mixture_of_experts", array_ops.mixture_of_experts, (TUNABLE,), specimens)
