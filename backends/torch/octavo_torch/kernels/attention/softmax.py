"""Online softmax over tiles of keys (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2).

Scores are kept in units of the binary logarithm: exp2 is what the hardware has.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from octavo_torch.kernels.attention.pages import decoded, load_blocks, load_rows, load_scales, scale_of_decoded
from octavo_torch.kernels.precision import dot, rounded


class Scoring(NamedTuple):
    """From products to scores, in units of the binary logarithm.

    position: of the rows' tokens, int32 [ROWS]. window: of the sliding window, if there is one. A score is a product
    times `outer`, or where it is capped tanh(product * inner / 2) * outer.
    """

    position: tl.tensor
    window: tl.tensor
    inner: tl.tensor
    outer: tl.tensor


@triton.jit
def visit(
    state,
    query,
    pages,
    scoring,
    begin,
    end,
    lowest,
    highest,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MANTISSA: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    FLOAT8: tl.constexpr,
    TF32X3: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Keys [begin, end) in tiles of TILE, into (best, total, output) of the rows.

    state: best [ROWS] is the largest score so far, -inf before the first; total [ROWS] the sum of the weights
    exp2(score - best); output [ROWS, HEAD] that of the weighted values. query [ROWS, HEAD]. MASKED: a row sees the keys
    up to its own position and inside its window, and only keys [lowest, highest) are read at all; else every row sees
    every key. MANTISSA: of the cache's entries if they are scaled bytes (`scaled_kv.Format`), else None.
    """
    best, total, output = state
    HEAD: tl.constexpr = query.shape[1]
    # A weight times a scale made for eight bits may be too small for float16.
    weight_type: tl.constexpr = tl.bfloat16 if MANTISSA is not None and query.dtype == tl.float16 else query.dtype
    following = load_blocks(pages, begin + tl.arange(0, TILE), highest, BLOCK_SIZE)
    for tile in range(begin, end, TILE):
        key = tile + tl.arange(0, TILE)
        inside = (key >= lowest) & (key < highest)
        # The blocks of a tile are loaded one tile ahead. If not, a tile's loads had to wait for one another, and the
        # compiler would spend its stages on the table instead of on keys and values.
        block, slot = following.to(tl.int64), key % BLOCK_SIZE
        following = load_blocks(pages, key + TILE, highest, BLOCK_SIZE)
        row = block * pages.block + slot * pages.slot
        keys = load_rows(pages.key + row, inside, HEAD_SIZE, HEAD, MASKED)
        values = load_rows(pages.value + row, inside, HEAD_SIZE, HEAD, MASKED)
        if MANTISSA is not None:
            keys = decoded(keys, query.dtype, MANTISSA, FLOAT8, INTERPRETED)
            values = decoded(values, weight_type, MANTISSA, FLOAT8, INTERPRETED)
        else:
            keys = keys.to(query.dtype)
            values = values.to(query.dtype)

        scores = _product(query, tl.trans(keys), tl.zeros([query.shape[0], TILE], tl.float32), TF32X3, INTERPRETED)
        if MANTISSA is not None:
            scale_row = block * pages.scales_block + slot * pages.scales_slot
            key_scale = load_scales(pages.key_scale + scale_row, inside, MASKED)
            value_scale = load_scales(pages.value_scale + scale_row, inside, MASKED)
            scores *= scale_of_decoded(key_scale, MANTISSA, FLOAT8)[None, :]
        if CAPPED:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1). Where exp overflows that is 1, as it should be.
            scores = 1.0 - 2.0 / (tl.exp2(scores * scoring.inner) + 1.0)
        if MASKED:
            seen = key[None, :] <= scoring.position[:, None]
            if WINDOWED:
                seen &= key[None, :] > scoring.position[:, None] - scoring.window
            scores = tl.where(seen, scores, float("-inf"))

        higher = tl.maximum(best, tl.max(scores, 1) * scoring.outer)
        # A row that has seen nothing yet: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN.
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * scoring.outer - anchor[:, None])
        decay = tl.exp2(best - anchor)
        best = higher
        total = total * decay + tl.sum(weights, 1)
        if MANTISSA is not None:
            weights *= scale_of_decoded(value_scale, MANTISSA, FLOAT8)[None, :]
        weights = rounded(weights, weight_type, INTERPRETED)
        output = _product(weights, values, output * decay[:, None], TF32X3, INTERPRETED)
    return best, total, output


@triton.jit
def _product(a, b, accumulator, TF32X3: tl.constexpr, INTERPRETED: tl.constexpr):
    """a @ b + accumulator in float32. TF32X3: float32 operands as sums of two tf32 numbers each, in three products on
    the matrix units; as exact as float32's own products but for a few of the last bits."""
    if TF32X3 and not INTERPRETED:
        return tl.dot(a, b, accumulator, input_precision="tf32x3")
    return dot(a, b, accumulator, INTERPRETED)


@triton.jit
def add_sink(best, total, sink):
    """One more score in the denominator that has no value (Xiao et al. 2023): the new total, and the output's factor.

    sink: as it is stored; best and total as `visit` has them, of any shape.
    """
    score = sink.to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(best, score)
    decay = tl.exp2(best - higher)
    return total * decay + tl.exp2(score - higher), decay
