"""The fused operation and its two halves, each one launch of the same kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton

from octavo.backend import RotaryTable
from octavo_torch.kernels.kernel import Cost
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.rotary_write_kv.move import move_heads
from octavo_torch.kernels.scaled_kv import FORMATS
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable("rotary_write_kv", facts=("dtype", "head_size"), defaults={"rows": 16, "num_warps": 4})
"""rows: heads of one program, over tokens; a power of two."""


def rotary_write_kv(
    runtime: KernelRuntime,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    table: RotaryTable,
    kv: PagedKV,
    slots: torch.Tensor,
) -> torch.Tensor:
    """`Ops.rotary_write_kv`: returns the rotated q [tokens, heads, head_size]; kv is written in place.

    The result and the cache are, bit by bit, those of `rotary` and then `write_kv`.
    """
    rotated = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _launch(runtime, k, kv.keys, kv.key_scales, v, kv.values, kv.value_scales, q, rotated, positions, table, slots)
    return rotated


def rotary(
    runtime: KernelRuntime, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: RotaryTable
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Ops.rotary`: the rotated q and k."""
    rotated_q, rotated_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    # The rows of k's result are blocks of one slot each, and a token's slot is its row.
    _launch(runtime, k, rotated_k[:, None], None, None, None, None, q, rotated_q, positions, table, None)
    return rotated_q, rotated_k


def write_kv(runtime: KernelRuntime, kv: PagedKV, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
    """`Ops.write_kv`, in place."""
    _launch(runtime, k, kv.keys, kv.key_scales, v, kv.values, kv.value_scales, None, None, None, None, slots)


def cost(
    tokens: int, heads: int, kv_heads: int, head_size: int, rotary_size: int, itemsize: int, kv_itemsize: int
) -> Cost:
    """Of one `rotary_write_kv`; scales, where the cache has them, not counted."""
    return Cost(
        read=tokens * ((heads + 2 * kv_heads) * head_size * itemsize + rotary_size * 4 + 8),
        written=tokens * (heads * itemsize + 2 * kv_heads * kv_itemsize) * head_size,
        flops=tokens * (heads + kv_heads) * rotary_size * 3,
    )


def _launch(
    runtime: KernelRuntime,
    k: torch.Tensor,
    keys: torch.Tensor,
    key_scales: torch.Tensor | None,
    v: torch.Tensor | None,
    values: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    q: torch.Tensor | None,
    rotated: torch.Tensor | None,
    positions: torch.Tensor | None,
    table: RotaryTable | None,
    slots: torch.Tensor | None,
) -> None:
    tokens, kv_heads, head_size = k.shape
    heads = 0 if q is None else q.shape[1]
    rotary_size = 0 if table is None else table.cos_sin.shape[1]
    tuned = runtime.tuned(TUNABLE, dtype=dtype_name(k.dtype), head_size=head_size)
    rows = tuned["rows"]
    key_parts, query_parts = triton.cdiv(tokens * kv_heads, rows), triton.cdiv(tokens * heads, rows)
    value_parts = 0 if v is None else key_parts
    entry = FORMATS.get(keys.dtype)
    runtime.launch(
        move_heads,
        (key_parts + value_parts + query_parts,),
        {
            **_source("k", k),
            **_cache("keys", keys),
            **_scales("key_scales", key_scales),
            **_source("v", v),
            **_cache("values", values),
            **_scales("value_scales", value_scales),
            **_source("q", q),
            "rotated": rotated,
            "positions": positions,
            "cos_sin": None if table is None else table.cos_sin,
            "slots": slots,
            "tokens": tokens,
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_SIZE": head_size,
            "ROTARY": rotary_size,
            "INTERLEAVED": table is not None and table.interleaved,
            "BLOCK_SIZE": keys.shape[1],
            "MANTISSA": 0 if entry is None else entry.mantissa,
            "LARGEST": 0.0 if entry is None else entry.largest,
            "ROWS": rows,
            "PAIRS": triton.next_power_of_2(max(1, rotary_size // 2)),
            "REST": triton.next_power_of_2(max(1, head_size - rotary_size)),
            "WHOLE": triton.next_power_of_2(head_size),
            "INTERPRETED": runtime.target.interpreted,
        },
        num_warps=tuned["num_warps"],
    )


def _source(name: str, x: torch.Tensor | None) -> dict[str, Any]:
    """[tokens, heads, head_size] as the kernel's arguments."""
    token, head = (0, 0) if x is None else x.stride()[:2]
    return {name: x, f"{name}_token": token, f"{name}_head": head}


def _cache(name: str, cache: torch.Tensor | None) -> dict[str, Any]:
    """[blocks, block_size, kv_heads, head_size], entries of eight bits as bytes."""
    if cache is not None and cache.dtype in FORMATS:
        cache = cache.view(torch.uint8)
    return {name: cache, **_strides(name, cache)}


def _scales(name: str, scales: torch.Tensor | None) -> dict[str, Any]:
    """[blocks, block_size, kv_heads]."""
    return {name: scales, **_strides(name, scales)}


def _strides(name: str, x: torch.Tensor | None) -> dict[str, int]:
    block, slot, head = (0, 0, 0) if x is None else x.stride()[:3]
    return {f"{name}_block": block, f"{name}_slot": slot, f"{name}_head": head}
