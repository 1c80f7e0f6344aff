"""The kernel: heads move to their places, turned on the way if they are of q or k.

A row is one head of one token. A program takes a few rows of k, of v or of q. The first rotary_size entries of a row
of q or k are turned; the row then goes to its place in the result or to its slot of the cache, converted, or scaled and
rounded to eight bits. q, k and v may be slices of one fused projection.
"""

import triton
import triton.language as tl

from octavo_torch.kernels.precision import rounded
from octavo_torch.kernels.scaled_kv import encoded, scale_of


@triton.jit(do_not_specialize=["tokens"])
def move_heads(
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
