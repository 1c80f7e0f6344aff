"""Rows in groups: the token-expert pairs of each expert, the rows of each adapter.

A grouped product works on tiles of rows of one group. How many rows a group has is known on the device only, and the
host does not wait for it: it launches as many programs as the worst distribution needs, and those without a tile end at
once. Groups are made by counting, without atomics: the rows of each group are counted chunk by chunk (by whoever makes
the ids, if it can); then each chunk adds up the counts before it, and its rows know their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_torch.kernels.launch import KernelRuntime

CHUNK = 128
"""Rows of a chunk at the most: each is compared with each."""

_GROUPS_AT_ONCE = 32
_CHUNKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Rows by group.

    order: int32 [rows], the rows of group 0, of group 1 and so on, each in rising order.
    tiles: int32 [most, 3], of each tile its group, its first place in `order` and how many rows it takes from there.
    used: int32 [1], how many tiles there are.
    block: rows of a tile at the most.
    """

    order: torch.Tensor
    tiles: torch.Tensor
    used: torch.Tensor
    block: int

    @property
    def most(self) -> int:
        """Tiles there can be, whatever the distribution."""
        return self.tiles.shape[0]


def count_rows(runtime: KernelRuntime, ids: torch.Tensor, groups: int) -> torch.Tensor:
    """The rows of each group in each CHUNK of rows: int32 [chunks, groups]. ids as for `group_rows`."""
    rows = ids.shape[0]
    counts = torch.empty((triton.cdiv(rows, CHUNK), groups), dtype=torch.int32, device=ids.device)
    runtime.launch(
        _count_kernel,
        (counts.shape[0], triton.cdiv(groups, _GROUPS_AT_ONCE)),
        {"ids": ids, "counts": counts, "rows": rows, "groups": groups, "CHUNK": CHUNK, "GROUPS": _GROUPS_AT_ONCE},
        num_warps=4,
    )
    return counts


def group_rows(runtime: KernelRuntime, ids: torch.Tensor, counts: torch.Tensor, chunk: int, block: int) -> RowGroups:
    """Put rows into groups, in tiles of at most `block` rows.

    ids: int32 [rows], the group of each row; those below 0 belong to the last group. counts: int32 [chunks, groups],
        the rows of each group in each chunk. chunk: rows of all but the last chunk, at most CHUNK.
    """
    rows, (chunks, groups) = ids.shape[0], counts.shape
    # Each group wastes less than one tile, and an empty one none.
    most = rows // block + min(groups, rows)
    order = torch.empty(rows, dtype=torch.int32, device=ids.device)
    tiles = torch.empty((most, 3), dtype=torch.int32, device=ids.device)
    used = torch.empty(1, dtype=torch.int32, device=ids.device)
    runtime.launch(
        _place_kernel,
        (chunks,),
        {
            "ids": ids,
            "counts": counts,
            "order": order,
            "tiles": tiles,
            "used": used,
            "rows": rows,
            "chunks": chunks,
            "groups": groups,
            "BLOCK": block,
            "CHUNK": chunk,
            "LANES": triton.next_power_of_2(chunk),
            "GROUPS": triton.next_power_of_2(groups),
            "CHUNKS": _CHUNKS_AT_ONCE,
        },
        num_warps=4,
    )
    return RowGroups(order, tiles, used, block)


@triton.jit
def tile_rows(order, tiles, tile, LANES: tl.constexpr):
    """A tile of `RowGroups`: its group, its first place in `order`, its rows [LANES] and which of them there are."""
    group = tl.load(tiles + tile * 3)
    start = tl.load(tiles + tile * 3 + 1)
    lane = tl.arange(0, LANES)
    inside = lane < tl.load(tiles + tile * 3 + 2)
    return group, start, tl.load(order + start + lane, mask=inside, other=0), inside


@triton.jit(do_not_specialize=["rows"])
def _count_kernel(ids, counts, rows, groups, CHUNK: tl.constexpr, GROUPS: tl.constexpr):
    chunk = tl.program_id(0)
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    mine = _groups_of(ids, row, row < rows, groups)[:, None] == group[None, :]
    count = tl.sum((mine & (row < rows)[:, None]).to(tl.int32), 0)
    tl.store(counts + chunk * groups + group, count, mask=group < groups)


@triton.jit(do_not_specialize=["rows", "chunks"])
def _place_kernel(
    ids,
    counts,
    order,
    tiles,
    used,
    rows,
    chunks,
    groups,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    chunk = tl.program_id(0)
    group = tl.arange(0, GROUPS)
    total = tl.zeros([GROUPS], tl.int32)  # rows of each group
    before = tl.zeros([GROUPS], tl.int32)  # and those in earlier chunks
    for start in range(0, chunks, CHUNKS):
        other = start + tl.arange(0, CHUNKS)[:, None]
        inside = (other < chunks) & (group < groups)[None, :]
        part = tl.load(counts + other * groups + group[None, :], mask=inside, other=0)
        total += tl.sum(part, 0)
        before += tl.sum(tl.where(other < chunk, part, 0), 0)
    tiles_of = (total + BLOCK - 1) // BLOCK
    first_place = tl.cumsum(total, 0) - total
    first_tile = tl.cumsum(tiles_of, 0) - tiles_of

    lane = tl.arange(0, LANES)
    row = chunk * CHUNK + lane
    inside = (lane < CHUNK) & (row < rows)
    mine = _groups_of(ids, row, inside, groups)
    # Lanes that are no rows come last, so none of them counts as an earlier one.
    earlier = (mine[:, None] == mine[None, :]) & (lane[None, :] < lane[:, None])
    rank = tl.gather(before, mine, 0) + tl.sum(earlier.to(tl.int32), 1)  # within the group
    place = tl.gather(first_place, mine, 0) + rank
    tl.store(order + place, row, mask=inside)
    first = inside & (rank % BLOCK == 0)
    tile = tiles + (tl.gather(first_tile, mine, 0) + rank // BLOCK) * 3
    tl.store(tile, mine, mask=first)
    tl.store(tile + 1, place, mask=first)
    tl.store(tile + 2, tl.minimum(tl.gather(total, mine, 0) - rank, BLOCK), mask=first)
    if chunk == 0:
        tl.store(used, tl.sum(tiles_of, 0))


@triton.jit
def _groups_of(ids, row, inside, groups):
    group = tl.load(ids + row, mask=inside, other=0)
    return tl.where(group < 0, groups - 1, group)
