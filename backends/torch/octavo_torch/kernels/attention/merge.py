"""The second kernel: what splits of the keys found, into one result (Dao et al. 2023, Flash-Decoding)."""

import triton
import triton.language as tl

from octavo_torch.kernels.attention.softmax import add_sink
from octavo_torch.kernels.attention.tiles import split_keys, visible_keys
from octavo_torch.kernels.precision import rounded


@triton.jit(do_not_specialize=["tokens", "window", "splits"])
def merge(
    partial_outputs,
    partial_bests,
    partial_totals,
    sinks,
    out,
    token_sequences,
    query_starts,
    context_lengths,
    tokens,
    window,
    splits,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    LEAST_SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (rows,): ROWS query heads of any tokens, PARTS splits at a time. Heads of one split have their result."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = (row // HEADS).to(tl.int32), (row % HEADS).to(tl.int32)
    real = token < tokens
    sequence = tl.load(token_sequences + token, mask=real, other=0)
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    # Of the tile that the token was in: what it saw was split, not what the token saw.
    tile = (token - start) // BLOCK_Q * BLOCK_Q
    first = tl.load(context_lengths + sequence) - queries + tile
    count = tl.minimum(queries - tile, BLOCK_Q)
    begin, end = visible_keys(first, first + count - 1, window, WINDOWED, TILE)
    _, needed = split_keys(begin, end, splits, TILE, LEAST_SPLIT)
    mine = real & (token - start < queries) & (needed > 1)
    needed = tl.where(mine, needed, 0)
    most = tl.max(needed, 0)
    if most == 0:
        return

    column = tl.arange(0, HEAD)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, HEAD], tl.float32)
    for split in range(0, most, PARTS):
        part = split + tl.arange(0, PARTS)
        inside = part[None, :] < needed[:, None]
        at = row[:, None] * splits + part[None, :]  # [ROWS, PARTS]
        bests = tl.load(partial_bests + at, mask=inside, other=float("-inf"))
        totals = tl.load(partial_totals + at, mask=inside, other=0.0)
        outputs = tl.load(
            partial_outputs + (at * HEAD_SIZE)[:, :, None] + column[None, None, :],
            mask=inside[:, :, None] & (column < HEAD_SIZE)[None, None, :],
            other=0.0,
        )
        higher = tl.maximum(best, tl.max(bests, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp2(bests - anchor[:, None])
        decay = tl.exp2(best - anchor)
        total = total * decay + tl.sum(totals * share, 1)
        output = output * decay[:, None] + tl.sum(outputs * share[:, :, None], 1)
        best = higher
    if SINKS:
        total, decay = add_sink(best, total, tl.load(sinks + head))
        output *= decay[:, None]
    result = output / tl.where(mine, total, 1.0)[:, None]
    tl.store(
        out + (row * HEAD_SIZE)[:, None] + column[None, :],
        rounded(result, out.dtype.element_ty, INTERPRETED),
        mask=mine[:, None] & (column < HEAD_SIZE)[None, :],
    )
