"""The kernel: one query tile, one KV head with its group of query heads, one split of the keys."""

import triton
import triton.language as tl

from octavo_torch.kernels.attention.pages import Pages
from octavo_torch.kernels.attention.softmax import Scoring, add_sink, visit
from octavo_torch.kernels.attention.tiles import find_tile, split_keys, visible_keys
from octavo_torch.kernels.precision import rounded


@triton.jit(do_not_specialize=["window", "tokens", "sequences", "table_row"])
def attend(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    out,
    partial_outputs,
    partial_bests,
    partial_totals,
    query_starts,
    context_lengths,
    block_tables,
    inner,
    outer,
    window,
    tokens,
    sequences,
    table_row,
    q_token,
    q_head,
    kv_block,
    kv_slot,
    kv_head,
    scales_block,
    scales_slot,
    scales_head,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    LEAST_SPLIT: tl.constexpr,
    MANTISSA: tl.constexpr,
    DECODE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    FLOAT8: tl.constexpr,
    TF32X3: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (tiles, kv_heads, splits). Strides are named after what they step over; the rest: `operation._Tiling`.

    Heads whose keys fit one split get their result, the others an entry of each partial_...: float32 [tokens, heads,
    splits, head_size], [tokens, heads, splits] and the same.
    """
    program, kv, split, splits = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, HEAD)
    local = row // GROUP  # the row's token among those of the tile
    head = kv * GROUP + row % GROUP
    heads = tl.num_programs(1) * GROUP

    # What follows the real tokens is, to tiles, one more sequence: it gets zeros, not what the memory happens to hold.
    real = tl.load(query_starts + sequences)
    if DECODE:
        sequence, tile, padding = program, 0, program
    else:
        sequence, tile = find_tile(query_starts, sequences + 1, program, BLOCK_Q)
        padding = tl.where(sequence == sequences, real + tile * BLOCK_Q, -1)
    if (padding >= real) & (split == 0):
        token = padding + local
        where = (token.to(tl.int64) * heads + head) * HEAD_SIZE
        here = ((local < BLOCK_Q) & (token < tokens))[:, None] & (column < HEAD_SIZE)[None, :]
        tl.store(out + where[:, None] + column[None, :], tl.zeros([ROWS, HEAD], out.dtype.element_ty), mask=here)
    if sequence >= sequences:
        return

    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    context = tl.load(context_lengths + sequence)
    # The tiles that see most come first: what is begun last should be short.
    tile = tl.cdiv(queries, BLOCK_Q) - 1 - tile
    if tile < 0:
        return
    first = context - queries + tile * BLOCK_Q
    count = tl.minimum(queries - tile * BLOCK_Q, BLOCK_Q)
    begin, end = visible_keys(first, first + count - 1, window, WINDOWED, TILE)
    size, needed = split_keys(begin, end, splits, TILE, LEAST_SPLIT)
    if split >= needed:
        return
    begin += split * size
    end = tl.minimum(begin + size, end)

    token = (start + tile * BLOCK_Q + local).to(tl.int64)
    inside = local < count
    here = inside[:, None] & (column < HEAD_SIZE)[None, :]
    query = tl.load(q + (token * q_token + head * q_head)[:, None] + column[None, :], mask=here, other=0.0)
    pages = Pages(
        keys + kv.to(tl.int64) * kv_head,
        values + kv.to(tl.int64) * kv_head,
        # Without scales anything stands there: Triton before 3.4 takes no None into a function.
        keys if MANTISSA is None else key_scales + kv.to(tl.int64) * scales_head,
        values if MANTISSA is None else value_scales + kv.to(tl.int64) * scales_head,
        block_tables + sequence.to(tl.int64) * table_row,
        kv_block,
        kv_slot,
        scales_block,
        scales_slot,
    )
    scoring = Scoring(first + local, window, inner, outer)
    state = (
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS, HEAD], tl.float32),
    )
    # Keys before and after those that every row sees want masks. A decode takes all its keys in the last phase: one
    # loop always has the next tile on its way, and where memory is the limit a mask costs little.
    lowest, low, high = 0, begin, begin
    if WINDOWED:
        lowest = tl.maximum(first - window + 1, 0)
    if not DECODE:
        if WINDOWED:
            every = tl.maximum(first + count - window, 0)  # the first key that the last row sees
            low = tl.minimum(tl.maximum(tl.cdiv(every, TILE) * TILE, begin), end)
        high = tl.maximum(tl.minimum((first + 1) // TILE * TILE, end), low)
    for phase in tl.static_range(0 if WINDOWED and not DECODE else 2 if DECODE else 1, 3):
        state = visit(
            state,
            query,
            pages,
            scoring,
            begin if phase == 0 else low if phase == 1 else high,
            low if phase == 0 else high if phase == 1 else end,
            lowest,
            end,
            HEAD_SIZE,
            BLOCK_SIZE,
            TILE,
            MANTISSA,
            phase != 1,
            WINDOWED,
            CAPPED,
            FLOAT8,
            TF32X3,
            INTERPRETED,
        )
    best, total, output = state

    where = token * heads + head
    if SPLIT:  # noqa: SIM102  # decided when the kernel is compiled: without splits there are no partial results
        if needed > 1:
            part = where * splits + split
            tl.store(partial_bests + part, best, mask=inside)
            tl.store(partial_totals + part, total, mask=inside)
            tl.store(partial_outputs + (part * HEAD_SIZE)[:, None] + column[None, :], output, mask=here)
            return
    if SINKS:
        total, decay = add_sink(best, total, tl.load(sinks + head, mask=inside, other=0.0))
        output *= decay[:, None]
    result = rounded(output / tl.where(inside, total, 1.0)[:, None], out.dtype.element_ty, INTERPRETED)
    tl.store(out + (where * HEAD_SIZE)[:, None] + column[None, :], result, mask=here)
