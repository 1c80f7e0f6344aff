"""The router: each token's experts and their shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.row_groups import CHUNK

_LOGITS = 8192
"""Router logits of one program at the most."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Where each token goes.

    experts: int32 [tokens * top_k], a token's experts next to each other, the likeliest first. shares: float32 of the
    same shape, the weight of each in the token's sum.
    counts: int32 [chunks, experts], how many tokens of a chunk chose an expert. chunk: token-expert pairs of one.
    """

    experts: torch.Tensor
    shares: torch.Tensor
    counts: torch.Tensor
    chunk: int


def route(runtime: KernelRuntime, logits: torch.Tensor, top_k: int, renormalize: bool) -> Routing:
    """Softmax over all experts and the top_k of them, equal ones by lowest index. logits [tokens, experts].

    A row of NaN (padding) goes to the first top_k experts: somewhere, that is, and with any share.
    """
    tokens, experts = logits.shape
    width = triton.next_power_of_2(experts)
    rows = max(1, min(_LOGITS // width, CHUNK // triton.next_power_of_2(top_k)))  # powers of two
    chunks = triton.cdiv(tokens, rows)
    chosen = torch.empty(tokens * top_k, dtype=torch.int32, device=logits.device)
    shares = torch.empty(tokens * top_k, dtype=torch.float32, device=logits.device)
    counts = torch.empty((chunks, experts), dtype=torch.int32, device=logits.device)
    runtime.launch(
        _route_kernel,
        (chunks,),
        {
            "logits": logits,
            "chosen": chosen,
            "shares": shares,
            "counts": counts,
            "tokens": tokens,
            "experts": experts,
            "stride": logits.stride(0),
            "ROWS": rows,
            "EXPERTS": width,
            "TOP_K": top_k,
            "PLACES": triton.next_power_of_2(top_k),
            "RENORMALIZE": renormalize,
        },
        num_warps=8,
    )
    return Routing(chosen, shares, counts, rows * top_k)


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    logits,
    chosen,
    shares,
    counts,
    tokens,
    experts,
    stride,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    PLACES: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    LOWEST: tl.constexpr = -3.0e38
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)[None, :]
    inside = (row < tokens)[:, None] & (expert < experts)
    logit = tl.load(logits + row.to(tl.int64)[:, None] * stride + expert, mask=inside, other=0.0).to(tl.float32)
    # NaN and -inf become the lowest number, so that -inf can stand for an expert that was taken or is none.
    logit = tl.where(logit >= LOWEST, logit, LOWEST)
    left = tl.where(expert < experts, logit, -float("inf"))
    best = tl.max(left, 1)
    total = tl.sum(tl.exp(left - best[:, None]), 1)
    place = tl.arange(0, PLACES)[None, :]
    ids = tl.zeros([ROWS, PLACES], tl.int32)
    odds = tl.zeros([ROWS, PLACES], tl.float32)
    for k in range(TOP_K):
        largest = tl.max(left, 1)[:, None]
        first = tl.min(tl.where(left == largest, expert, EXPERTS), 1)[:, None]
        ids = tl.where(place == k, first, ids)
        odds = tl.where(place == k, tl.exp(largest - best[:, None]), odds)
        left = tl.where(expert == first, -float("inf"), left)
    if RENORMALIZE:
        total = tl.sum(odds, 1)
    pair = row[:, None] * TOP_K + place
    real = (row < tokens)[:, None] & (place < TOP_K)
    tl.store(chosen + pair, ids, mask=real)
    tl.store(shares + pair, odds / total[:, None], mask=real)
    taken = inside & (left == -float("inf"))
    tally = tl.sum(taken.to(tl.int32), 0)
    expert = tl.arange(0, EXPERTS)
    tl.store(counts + tl.program_id(0) * experts + expert, tally, mask=expert < experts)
