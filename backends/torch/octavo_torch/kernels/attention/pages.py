"""Reading keys and values through the block table."""

from typing import NamedTuple

import triton
import triton.language as tl


class Pages(NamedTuple):
    """One sequence's keys and values of one KV head.

    key, value: slot 0 of block 0 of the head. key_scale, value_scale: likewise, or None. table: the sequence's row
    of the block table. block, slot: strides of keys and values; scales_block, scales_slot: those of their scales.
    """

    key: tl.tensor
    value: tl.tensor
    key_scale: tl.tensor
    value_scale: tl.tensor
    table: tl.tensor
    block: tl.tensor
    slot: tl.tensor
    scales_block: tl.tensor
    scales_slot: tl.tensor


@triton.jit
def load_blocks(pages, position, highest, BLOCK_SIZE: tl.constexpr):
    """The block of each position [TILE]; the null block for positions from `highest` on."""
    return tl.load(pages.table + position // BLOCK_SIZE, mask=position < highest, other=0)


@triton.jit
def load_rows(rows, inside, HEAD_SIZE: tl.constexpr, HEAD: tl.constexpr, MASKED: tl.constexpr):
    """[TILE, HEAD] from pointers [TILE] to heads of HEAD_SIZE entries; zeros beyond them and in rows not inside.

    A mask is made only where it is needed: loads without one are wider and can be issued earlier.
    """
    column = tl.arange(0, HEAD)[None, :]
    if HEAD_SIZE == HEAD:
        if MASKED:
            return tl.load(rows[:, None] + column, mask=inside[:, None], other=0)
        return tl.load(rows[:, None] + column)
    if MASKED:
        return tl.load(rows[:, None] + column, mask=inside[:, None] & (column < HEAD_SIZE), other=0)
    return tl.load(rows[:, None] + column, mask=column < HEAD_SIZE, other=0)


@triton.jit
def load_scales(rows, inside, MASKED: tl.constexpr):
    """[TILE] scales from pointers [TILE]; 0 in rows not inside."""
    if MASKED:
        return tl.load(rows, mask=inside, other=0.0)
    return tl.load(rows)


@triton.jit
def decoded(entries, DTYPE: tl.constexpr, MANTISSA: tl.constexpr, FLOAT8: tl.constexpr, INTERPRETED: tl.constexpr):
    """Bytes of `scaled_kv.encoded` as DTYPE, but for a power of two that `scale_of_decoded` makes up for.

    FLOAT8: the processor converts float8 itself. Elsewhere the bits of a small float are shifted to where float16 has
    its own: that is the number times 2^(its bias - 15), those below the normal ones included.
    """
    if MANTISSA == 0:
        if INTERPRETED:  # it takes an integer's bits for those of a bfloat16
            return entries.to(tl.int8, bitcast=True).to(tl.float32).to(DTYPE)
        return entries.to(tl.int8, bitcast=True).to(DTYPE)
    if FLOAT8:
        if MANTISSA == 3:
            return entries.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(DTYPE)
        return entries.to(tl.float8e5, bitcast=True).to(tl.float16).to(DTYPE)
    wide = (entries.to(tl.uint16) << 8).to(tl.int16, bitcast=True)
    if MANTISSA == 3:
        # The shift copies the sign into the bit below it, which is cleared again.
        wide = (wide >> 1) & -0x4001
    return wide.to(tl.float16, bitcast=True).to(DTYPE)


@triton.jit
def scale_of_decoded(scales, MANTISSA: tl.constexpr, FLOAT8: tl.constexpr):
    """The scales by which entries of `decoded` are multiplied."""
    if MANTISSA == 3 and not FLOAT8:
        return scales * 256.0
    return scales
