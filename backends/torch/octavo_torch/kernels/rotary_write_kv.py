"""Rotary position embedding fused with the KV cache's write: q, k and v are read once, in one launch.

A row is one head of one token. A program takes a few rows of k, of v or of q. The first rotary_size entries of a row
of q or k are turned; the row then goes to its place in the result or to its slot of the cache, converted, or scaled and
rounded to eight bits. q, k and v may be slices of one fused projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import Ops, RotaryTable
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.scaled_kv import FORMATS, encoded, scale_of
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
        _kernel,
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


@triton.jit(do_not_specialize=["tokens"])
def _kernel(
    k,
    k_token,
    k_head,
    keys,
    keys_block,
    keys_slot,
    keys_head,
    key_scales,
    key_scales_block,
    key_scales_slot,
    key_scales_head,
    v,
    v_token,
    v_head,
    values,
    values_block,
    values_slot,
    values_head,
    value_scales,
    value_scales_block,
    value_scales_slot,
    value_scales_head,
    q,
    q_token,
    q_head,
    rotated,
    positions,
    cos_sin,
    slots,
    tokens,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MANTISSA: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    WHOLE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    part = tl.program_id(0)
    key_parts = tl.cdiv(tokens * KV_HEADS, ROWS)
    value_parts = 0 if v is None else key_parts
    if part < key_parts:
        token, head, inside = _rows(part, tokens, KV_HEADS, ROWS)
        slot = _slot(slots, token, inside)
        _move(
            k + token.to(tl.int64) * k_token + head * k_head,
            keys + _place(slot, keys_block, keys_slot, BLOCK_SIZE) + head * keys_head,
            key_scales,
            _place(slot, key_scales_block, key_scales_slot, BLOCK_SIZE) + head * key_scales_head,
            inside,
            positions,
            token,
            cos_sin,
            HEAD_SIZE,
            ROTARY,
            INTERLEAVED,
            MANTISSA,
            LARGEST,
            PAIRS,
            REST,
            INTERPRETED,
        )
    elif part < key_parts + value_parts:
        if v is not None:
            token, head, inside = _rows(part - key_parts, tokens, KV_HEADS, ROWS)
            slot = _slot(slots, token, inside)
            _move(
                v + token.to(tl.int64) * v_token + head * v_head,
                values + _place(slot, values_block, values_slot, BLOCK_SIZE) + head * values_head,
                value_scales,
                _place(slot, value_scales_block, value_scales_slot, BLOCK_SIZE) + head * value_scales_head,
                inside,
                positions,
                token,
                cos_sin,
                HEAD_SIZE,
                0,
                INTERLEAVED,
                MANTISSA,
                LARGEST,
                PAIRS,
                WHOLE,
                INTERPRETED,
            )
    elif q is not None:
        token, head, inside = _rows(part - key_parts - value_parts, tokens, HEADS, ROWS)
        wide = token.to(tl.int64)
        _move(
            q + wide * q_token + head * q_head,
            rotated + (wide * HEADS + head) * HEAD_SIZE,
            None,
            0,
            inside,
            positions,
            token,
            cos_sin,
            HEAD_SIZE,
            ROTARY,
            INTERLEAVED,
            MANTISSA,
            LARGEST,
            PAIRS,
            REST,
            INTERPRETED,
        )


@triton.jit
def _rows(part, tokens, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Token and head of each row of a part, and whether there is such a row; all [rows, 1]."""
    row = part * ROWS + tl.arange(0, ROWS)[:, None]
    return row // HEADS, row % HEADS, row < tokens * HEADS


@triton.jit
def _slot(slots, token, inside):
    """Each row's slot; without slots, its token."""
    slot = token
    if slots is not None:
        slot = tl.load(slots + token, mask=inside, other=0)
    return slot


@triton.jit
def _place(slot, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr):
    """Where a slot lies in a paged array."""
    return (slot // BLOCK_SIZE).to(tl.int64) * block_stride + (slot % BLOCK_SIZE) * slot_stride


@triton.jit
def _move(
    source,  # [rows, 1]: where each row's head begins
    target,  # [rows, 1]
    scales,
    scales_place,  # [rows, 1]
    inside,  # [rows, 1]
    positions,
    token,  # [rows, 1]
    cos_sin,
    HEAD_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    MANTISSA: tl.constexpr,
    LARGEST: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Rows from source to target, the first ROTARY entries turned by the token's angles, scaled if there are scales."""
    dtype: tl.constexpr = source.dtype.element_ty
    pair = tl.arange(0, PAIRS)[None, :]
    rest = ROTARY + tl.arange(0, REST)[None, :]
    paired, resting = inside & (pair < ROTARY // 2), inside & (rest < HEAD_SIZE)
    left = 2 * pair if INTERLEAVED else pair
    right = left + 1 if INTERLEAVED else pair + ROTARY // 2
    if ROTARY > 0:
        position = tl.load(positions + token, mask=inside, other=0).to(tl.int64)
        cos = tl.load(cos_sin + position * ROTARY + pair, mask=paired, other=0.0)
        sin = tl.load(cos_sin + position * ROTARY + ROTARY // 2 + pair, mask=paired, other=0.0)
        x = tl.load(source + left, mask=paired, other=0.0).to(tl.float32)
        y = tl.load(source + right, mask=paired, other=0.0).to(tl.float32)
        # As `rotary` stores it: what the cache makes of it follows from that.
        turned_x = rounded(x * cos - y * sin, dtype, INTERPRETED).to(tl.float32)
        turned_y = rounded(y * cos + x * sin, dtype, INTERPRETED).to(tl.float32)
    if ROTARY < HEAD_SIZE:
        unturned = tl.load(source + rest, mask=resting, other=0.0).to(tl.float32)
    factor = 1.0
    if scales is not None:
        largest = tl.zeros_like(inside).to(tl.float32)
        if ROTARY > 0:
            largest = tl.maximum(_largest(turned_x), _largest(turned_y))
        if ROTARY < HEAD_SIZE:
            largest = tl.maximum(largest, _largest(unturned))
        scale, factor = scale_of(largest, LARGEST)
        tl.store(scales + scales_place, scale, mask=inside)
    if ROTARY > 0:
        _put(target + left, turned_x, paired, factor, MANTISSA, LARGEST, INTERPRETED)
        _put(target + right, turned_y, paired, factor, MANTISSA, LARGEST, INTERPRETED)
    if ROTARY < HEAD_SIZE:
        _put(target + rest, unturned, resting, factor, MANTISSA, LARGEST, INTERPRETED)


@triton.jit
def _largest(x):
    """The largest absolute entry of each row, [rows, 1]; infinite where one is NaN."""
    size = tl.where(x == x, tl.abs(x), float("inf"))
    return tl.max(size, 1)[:, None]


@triton.jit
def _put(target, x, inside, factor, MANTISSA: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr):
    """Bytes hold entries of eight bits, times `factor`; every other dtype holds the entries themselves."""
    dtype: tl.constexpr = target.dtype.element_ty
    if dtype == tl.uint8:
        tl.store(target, encoded(x * factor, MANTISSA, LARGEST), mask=inside)
    else:
        tl.store(target, rounded(x, dtype, INTERPRETED), mask=inside)


def specimens() -> Iterator[Specimen]:
    """Every cache dtype at head size 128, other head sizes, pairs and parts; and the two halves on their own."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield _specimen(dtype, dtype, 128, 128)
    for kv_dtype in FORMATS:
        yield _specimen(torch.bfloat16, kv_dtype, 128, 128)
    yield _specimen(torch.float16, torch.float8_e4m3fn, 64, 64)
    for head_size, rotary_size, interleaved in ((64, 64, False), (80, 32, False), (256, 256, False), (128, 64, True)):
        yield _specimen(torch.bfloat16, torch.bfloat16, head_size, rotary_size, interleaved)
    yield _specimen(torch.bfloat16, torch.bfloat16, 128, 128, only="rotary")
    yield _specimen(torch.bfloat16, torch.float8_e4m3fn, 128, 0, only="write_kv")


def _specimen(
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    head_size: int,
    rotary_size: int,
    interleaved: bool = False,
    only: str = "",
    tokens: int = 256,
    heads: int = 32,
    kv_heads: int = 8,
) -> Specimen:
    def call(runtime: KernelRuntime) -> None:
        def empty(*shape: int, of: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=of, device="meta")

        qkv = empty(tokens, heads + 2 * kv_heads, head_size, of=dtype)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        sides = empty(2, 1024, 16, kv_heads, head_size, of=kv_dtype)
        scales = empty(2, 1024, 16, kv_heads, of=torch.float32) if kv_dtype in FORMATS else (None, None)
        kv = PagedKV(sides[0], sides[1], scales[0], scales[1])
        table = RotaryTable(empty(8192, rotary_size, of=torch.float32), interleaved)
        positions, slots = empty(tokens, of=torch.int32), empty(tokens, of=torch.int32)
        if only == "rotary":
            rotary(runtime, q, k, positions, table)
        elif only == "write_kv":
            write_kv(runtime, kv, k, v, slots)
        else:
            rotary_write_kv(runtime, q, k, v, positions, table, kv, slots)

    turned = f"rotary={rotary_size}{',interleaved' if interleaved else ''}"
    name = f"{dtype_name(dtype)},kv={dtype_name(kv_dtype)},head_size={head_size},{turned}"
    return Specimen(f"{only}:{name}" if only else name, call)


KERNEL = Kernel("rotary_write_kv", Ops.rotary_write_kv, (TUNABLE,), specimens)
