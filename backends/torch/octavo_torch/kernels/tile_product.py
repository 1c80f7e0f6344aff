"""A tile of x @ W.T, for any rows of x and of W: the inner loops that linear layers, experts and adapters share.

Both return the tile with W's rows first, [out, rows]: the weights are then the left operand of the matrix units, which
can come from registers, where quantized weights are decoded; and few rows of x need the narrow side of them only.
"""

import triton
import triton.language as tl

from octavo_torch.kernels.packed_weight import Coding
from octavo_torch.kernels.precision import dot, rounded

_INTEGER = tl.constexpr(Coding.INTEGER.value)
_FLOAT8_E4M3 = tl.constexpr(Coding.FLOAT8_E4M3.value)
_CODEBOOK = tl.constexpr(Coding.CODEBOOK.value)


@triton.jit
def dense_product(
    x,
    x_rows,
    x_inside,
    weight,
    weight_rows,
    weight_inside,
    first,
    last,
    inputs,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Over the steps first .. last - 1, of IN inputs each.

    x_rows int64 [ROWS], weight_rows int64 [OUT]: where each row begins. Steps and not inputs are counted, and `inputs`
    alone ends a row, for the compiler to see how loads are aligned.
    """
    product = tl.zeros([OUT, ROWS], tl.float32)
    lane = tl.arange(0, IN)
    for step in range(first, last):
        column = step * IN + lane
        inside = column < inputs
        left = tl.load(
            weight + weight_rows[:, None] + column[None, :], mask=weight_inside[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(x + x_rows[None, :] + column[:, None], mask=x_inside[None, :] & inside[:, None], other=0.0)
        product = dot(left, right, product, INTERPRETED)
    return product


@triton.jit
def packed_product(
    x,
    x_rows,
    x_inside,
    words,
    scales,
    offsets,
    codebook,
    permutation,
    weight_rows,
    weight_inside,
    first,
    last,
    out,
    inputs,
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
    """Over the tiles first .. last - 1 of a `PackedQuantizedWeight`, decoded in registers.

    x_rows int64 [ROWS]: where each row begins. weight_rows int64 [OUT]: its outputs. PADDED: the last tile reaches past
    the inputs. offsets and permutation may be None.
    """
    PLACES: tl.constexpr = 32 // WIDTH
    dtype = x.dtype.element_ty
    product = tl.zeros([OUT, ROWS], tl.float32)
    lane = tl.arange(0, SPAN)
    for tile in range(first, last):
        word = tl.load(
            words + (weight_rows + tile * out)[:, None] * SPAN + lane[None, :], mask=weight_inside[:, None], other=0
        )
        for run in tl.static_range(0, PLACES, RUN):
            start = (tile * PLACES + run) * SPAN
            group = start // GROUP
            if PADDED:
                group = tl.minimum(group, inputs // GROUP - 1)
            scale = tl.load(scales + group * out + weight_rows, mask=weight_inside, other=0.0).to(tl.float32)
            if offsets is None:
                offset = tl.zeros_like(scale)
            else:
                offset = tl.load(offsets + group * out + weight_rows, mask=weight_inside, other=0.0).to(tl.float32)
            if CODING == _INTEGER:
                # A code arrives as 1 + code / 2**WIDTH. The large factor and its correction lose at most WIDTH bits of
                # float32's 24, and only of the offset.
                scale *= 1 << WIDTH
                offset -= scale
            if CODING == _FLOAT8_E4M3:
                scale *= 256.0
            for place in tl.static_range(run, run + RUN):
                column = (tile * PLACES + place) * SPAN + lane
                seen = x_inside[None, :]
                if PADDED:
                    seen = seen & (column < inputs)[:, None]
                if permutation is not None:
                    column = tl.load(permutation + column, mask=column < inputs, other=0)
                right = tl.load(x + x_rows[None, :] + column[:, None], mask=seen, other=0.0)
                left = _decoded(word, codebook, place, WIDTH, CODING) * scale[:, None] + offset[:, None]
                product = dot(rounded(left, dtype, INTERPRETED), right, product, INTERPRETED)
    return product


@triton.jit
def _decoded(word, codebook, PLACE: tl.constexpr, WIDTH: tl.constexpr, CODING: tl.constexpr):
    """The codes at a place of the words, float32: integers as 1 + code / 2**WIDTH, float8_e4m3 as 1/256 of its value.

    An integer is put to the top of the mantissa of 1.0, which takes two operations where a conversion takes three. A
    float8 is put to the top of a float16, whose exponent is as wide (e5m2) or wider by one bit (e4m3: hence 1/256,
    exact for subnormal numbers too).
    """
    MASK: tl.constexpr = (1 << WIDTH) - 1
    SHIFT: tl.constexpr = WIDTH * PLACE
    if CODING == _INTEGER:
        if SHIFT + WIDTH >= 23:
            moved = word >> (SHIFT + WIDTH - 23)
        else:
            moved = word << (23 - SHIFT - WIDTH)
        return ((moved & (MASK << (23 - WIDTH))) | 0x3F800000).to(tl.float32, bitcast=True)
    code = (word >> SHIFT) & MASK
    if CODING == _CODEBOOK:
        return tl.load(codebook + code).to(tl.float32)
    if CODING == _FLOAT8_E4M3:
        half = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
    else:
        half = code << 8
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
