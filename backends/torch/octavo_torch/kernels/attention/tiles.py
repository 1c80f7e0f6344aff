"""Query tiles: which tokens a program has, which keys they see, and how these are split among programs.

    tokens   | sequence 0 |     sequence 1      | 2 | 3 |  padding
    tiles    |  0  |  1  |  2  |  3  |  4  |  5 |     BLOCK_Q tokens each; a tile belongs to one sequence

Sequence i's tiles begin at number query_starts[i] // BLOCK_Q + i. So much room is always enough, it depends on nothing
that comes after the sequence, and the number of tiles is bounded by shapes alone; some tiles stay empty.
"""

import triton
import triton.language as tl


@triton.jit
def find_tile(query_starts, sequences, tile, BLOCK_Q: tl.constexpr):
    """The sequence that a tile belongs to, and the tile's number within it.

    The sequences that begin at or before the tile are counted rather than bisected: one round trip to memory for each
    256 of them, where a binary search makes one for each of its steps.
    """
    sequence = -1
    for first in range(0, sequences, 256):
        row = first + tl.arange(0, 256)
        inside = row < sequences
        begin = tl.load(query_starts + row, mask=inside, other=0) // BLOCK_Q + row
        sequence += tl.sum((inside & (begin <= tile)).to(tl.int32), 0)
    begin = tl.load(query_starts + sequence) // BLOCK_Q + sequence
    return sequence, tile - begin


@triton.jit
def visible_keys(first, last, window, WINDOWED: tl.constexpr, TILE: tl.constexpr):
    """Positions [begin, end) of the keys that queries at positions first .. last see; begin is a multiple of TILE."""
    begin = 0
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // TILE * TILE
    return begin, last + 1


@triton.jit
def split_keys(begin, end, splits, TILE: tl.constexpr, LEAST_SPLIT: tl.constexpr):
    """Keys of one split, a multiple of TILE and LEAST_SPLIT at the least, and how many splits that makes."""
    even = tl.cdiv(tl.cdiv(end - begin, splits), TILE) * TILE
    size = tl.maximum(even, LEAST_SPLIT)
    return size, tl.cdiv(end - begin, size)
