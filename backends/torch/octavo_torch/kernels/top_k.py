"""The k largest entries of each row, exactly ordered, without sorting the row.

Short rows, such as a router's, are chosen from in one program. A long row, such as a vocabulary of logits, is read
once, for the maximum of every 16 neighbours and the maximum of every 16 of these. Then one program takes the k largest
of the latter, the k largest of the 16 k maxima below them, and the k largest of the 16 k entries below those. That
finds the k largest: an entry outside of the chosen groups has k entries before it, one in each of them. Groups with
equal maxima are taken from the left, as entries are, so it holds with ties as well: equal entries further left come
first.

Work and memory do not depend on what the rows hold. 256 rows of 128,256 float32 logits, k = 64: 131 MB are read by
8,192 programs, 9 MB of maxima are written, and 2 MB of candidates read again; each of the 256 programs that choose puts
three times 1,024 keys or fewer in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import array_ops
from octavo_torch.kernels.kernel import Cost, Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.tuning import Tunable

BRANCHES = 16
"""Entries or maxima under one maximum."""

LARGEST_K = 64
"""Where k is larger, torch sorts the rows."""

TUNABLE = Tunable(
    "top_k",
    facts=("n", "k"),
    defaults={"entries": 1024, "tile": 4096, "read_warps": 4, "choose_warps": 4},
)
"""entries: the longest rows that are chosen from as they are, and the entries of one program then. tile: entries that
a program reads of a longer row. Both are powers of two. read_warps, choose_warps: of the two kernels."""


def top_k(runtime: KernelRuntime, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`Ops.top_k`: values [rows, k] in x's dtype and indices int32 [rows, k]. x [rows, n], the last axis contiguous.

    0.0 and -0.0 are equal. NaN counts as infinity, so that it shows.
    """
    if k > LARGEST_K:
        return _sorted(x, k)
    rows, n = x.shape
    tuned = runtime.tuned(TUNABLE, n=n, k=k)
    long = n > tuned["entries"]
    counts = (n, triton.cdiv(n, BRANCHES), triton.cdiv(n, BRANCHES**2))
    groups, supergroups = _maxima(runtime, x, counts, tuned) if long else (None, None)
    chosen = triton.next_power_of_2(k)
    columns = triton.next_power_of_2(max(counts[2], chosen * BRANCHES) if long else n)
    per_program = 1 if long else max(1, tuned["entries"] // columns)
    values = torch.empty((rows, k), dtype=x.dtype, device=x.device)
    indices = torch.empty((rows, k), dtype=torch.int32, device=x.device)
    runtime.launch(
        _choose_kernel,
        (triton.cdiv(rows, per_program),),
        {
            "x": x,
            "groups": groups,
            "supergroups": supergroups,
            "values": values,
            "indices": indices,
            "x_stride": x.stride(0),
            "rows": rows,
            "k": k,
            "ENTRIES": n,
            "GROUPS": counts[1],
            "SUPERGROUPS": counts[2],
            "BRANCHES": BRANCHES,
            "ROWS": per_program,
            "COLUMNS": columns,
            "CHOSEN": chosen,
            "LOG_CHOSEN": chosen.bit_length() - 1,
        },
        num_warps=tuned["choose_warps"],
    )
    return values, indices


def cost(rows: int, n: int, k: int, itemsize: int) -> Cost:
    """Of one call: a comparison an entry."""
    return Cost(read=rows * n * itemsize, written=rows * k * (itemsize + 4), flops=rows * n)


def _maxima(
    runtime: KernelRuntime, x: torch.Tensor, counts: tuple[int, int, int], tuned: dict[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every group of entries [rows, counts[1]], and of every group of groups [rows, counts[2]], in x's dtype."""
    rows = x.shape[0]
    groups, supergroups = (torch.empty((rows, count), dtype=x.dtype, device=x.device) for count in counts[1:])
    parts = triton.cdiv(counts[0], tuned["tile"])
    runtime.launch(
        _maxima_kernel,
        (rows * parts,),
        {
            "x": x,
            "groups": groups,
            "supergroups": supergroups,
            "x_stride": x.stride(0),
            "ENTRIES": counts[0],
            "GROUPS": counts[1],
            "SUPERGROUPS": counts[2],
            "BRANCHES": BRANCHES,
            "PARTS": parts,
            "TILE": tuned["tile"],
        },
        num_warps=tuned["read_warps"],
    )
    return groups, supergroups


def _sorted(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    # -0.0 + 0.0 is 0.0: no sort tells the two apart.
    indices = (x + 0.0).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return x.gather(-1, indices), indices.int()


@triton.jit
def _maxima_kernel(
    x,
    groups,
    supergroups,
    x_stride,
    ENTRIES: tl.constexpr,
    GROUPS: tl.constexpr,
    SUPERGROUPS: tl.constexpr,
    BRANCHES: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    index = part * TILE + tl.arange(0, TILE)
    entry = _comparable(tl.load(x + row * x_stride + index, mask=index < ENTRIES, other=float("-inf")))
    above = _group_maxima(entry, BRANCHES)
    group = part * (TILE // BRANCHES) + tl.arange(0, TILE // BRANCHES)
    # What is stored is one of the entries: no dtype rounds it.
    tl.store(groups + row * GROUPS + group, above, mask=group < GROUPS)
    top = _group_maxima(above, BRANCHES)
    group = part * (TILE // BRANCHES // BRANCHES) + tl.arange(0, TILE // BRANCHES // BRANCHES)
    tl.store(supergroups + row * SUPERGROUPS + group, top, mask=group < SUPERGROUPS)


@triton.jit
def _group_maxima(x, BRANCHES: tl.constexpr):
    return tl.max(tl.reshape(x, [x.shape[0] // BRANCHES, BRANCHES]), 1)


@triton.jit(do_not_specialize=["rows", "k"])
def _choose_kernel(
    x,
    groups,
    supergroups,
    values,
    indices,
    x_stride,
    rows,
    k,
    ENTRIES: tl.constexpr,
    GROUPS: tl.constexpr,
    SUPERGROUPS: tl.constexpr,
    BRANCHES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHOSEN: tl.constexpr,
    LOG_CHOSEN: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    index = tl.arange(0, COLUMNS)[None, :]
    best = tl.arange(0, CHOSEN)[None, :]
    if groups is None:
        best = _best(x + row * x_stride, index, (index < ENTRIES) & (row < rows), LOG_CHOSEN)
    else:
        level, count = supergroups + row * SUPERGROUPS, SUPERGROUPS
        # One loop for the three levels: what orders the keys is large, and compiled once.
        for depth in range(3):
            best = _best(level, index, index < count, LOG_CHOSEN)
            below = GROUPS if depth == 0 else ENTRIES
            index = _below(best, count, below, BRANCHES, COLUMNS)
            count = below
            if depth == 0:
                level = groups + row * GROUPS
            else:
                level = x + row * x_stride
    rank = tl.arange(0, CHOSEN)[None, :]
    shown = (rank < k) & (row < rows)
    tl.store(indices + row * k + rank, best, mask=shown)
    tl.store(values + row * k + rank, tl.load(x + row * x_stride + best, mask=shown), mask=shown)


@triton.jit
def _below(chosen, count, count_below, BRANCHES: tl.constexpr, COLUMNS: tl.constexpr):
    """What lies under chosen groups [1, k] -> [1, COLUMNS]; an index beyond all where there is nothing."""
    child = tl.arange(0, COLUMNS // chosen.shape[1])[None, None, :]
    there = (chosen < count)[:, :, None] & (child < BRANCHES)
    index = tl.where(there, chosen[:, :, None] * BRANCHES + child, count_below)
    return tl.reshape(index, [1, COLUMNS])


@triton.jit
def _best(entries, index, there, LOG_K: tl.constexpr):
    """The 2^LOG_K best of the candidates in each row, in order: index [rows, n] -> [rows, k].

    entries [rows, 1]: where the rows begin. Candidates that are not there come last, with an index beyond all.
    """
    value = _comparable(tl.load(entries + index, mask=there, other=float("-inf")))
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats have their sizes upside down
    place = tl.where(there, 0x7FFFFFFF - index, 0)
    keys = (rising.to(tl.int64) << 32) | place.to(tl.int64)  # fall as the candidates should stand
    return 0x7FFFFFFF - (_largest(keys, LOG_K) & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _comparable(x):
    """Float32, NaN as infinity."""
    wide = x.to(tl.float32)
    return tl.where(wide == wide, wide, float("inf"))


@triton.jit
def _largest(x, LOG_K: tl.constexpr):
    """The 2^LOG_K largest int64 keys of each row, falling: x [rows, n] -> [rows, k], n a power of two too.

    Batcher's bitonic sort (1968), cut short (Shanbhag, Pirk and Madden 2018): runs of k are sorted, every other one
    rising; the larger ones of two such runs, entry by entry, are the k largest of both, and a merge sorts them.
    """
    if LOG_K == 0:
        largest = tl.max(x, 1, keep_dims=True)
    else:
        largest = x
        for log_run in tl.static_range(1, LOG_K + 1):
            largest = _merged(largest, log_run)
        for _ in tl.static_range(31):  # halved until the k are left
            if largest.shape[1] > 2**LOG_K:
                largest = _merged(_larger_runs(largest, 2**LOG_K), LOG_K)
    return largest


@triton.jit
def _merged(x, LOG_RUN: tl.constexpr):
    """Bitonic runs of 2^LOG_RUN keys to sorted ones, of which every second one in a row rises."""
    for step in tl.static_range(LOG_RUN):
        x = _exchanged(x, 2 ** (LOG_RUN - 1 - step), 2**LOG_RUN)
    return x


@triton.jit
def _exchanged(x, DISTANCE: tl.constexpr, RUN: tl.constexpr):
    """Each two keys DISTANCE apart in the order of their run."""
    if RUN == x.shape[1]:
        shape: tl.constexpr = [1, 1, x.numel // (2 * DISTANCE), 2, DISTANCE]
    else:
        shape: tl.constexpr = [x.numel // (2 * RUN), 2, RUN // (2 * DISTANCE), 2, DISTANCE]  # type: ignore[no-redef]  # Triton wants both annotated
    # Axes of two instead of bits of a position: the direction is known per register, not computed.
    pairs = tl.reshape(x, shape)
    # Each key's partner. The sum may overflow: the difference takes it back.
    partner = tl.sum(pairs, 3, keep_dims=True) - pairs
    first = tl.arange(0, 2)[None, None, None, :, None] == 0
    rises = tl.arange(0, pairs.shape[1])[None, :, None, None, None] == 1
    ordered = tl.where(first != rises, tl.maximum(pairs, partner), tl.minimum(pairs, partner))
    return tl.reshape(ordered, x.shape)


@triton.jit
def _larger_runs(x, RUN: tl.constexpr):
    """The larger keys, entry by entry, of each two neighbouring runs: [rows, n] -> [rows, n / 2]."""
    runs = tl.reshape(x, [x.shape[0], x.shape[1] // (2 * RUN), 2, RUN])
    return tl.reshape(tl.max(runs, 2), [x.shape[0], x.shape[1] // 2])


def specimens() -> Iterator[Specimen]:
    """A sampler's candidates, logprobs and greedy choice over vocabularies; a router's experts."""
    for n in (128256, 262144):
        yield _specimen(torch.float32, n, 64)
    yield _specimen(torch.float32, 128256, 20)
    yield _specimen(torch.float32, 128256, 1)
    yield _specimen(torch.bfloat16, 128256, 64)
    for experts, k in ((8, 2), (128, 8), (256, 8)):
        yield _specimen(torch.float32, experts, k)


def _specimen(dtype: torch.dtype, n: int, k: int) -> Specimen:
    def call(runtime: KernelRuntime) -> Any:
        return top_k(runtime, torch.empty((256, n), dtype=dtype, device="meta"), k)

    return Specimen(f"{dtype_name(dtype)},n={n},k={k}", call)


KERNEL = Kernel("top_k", array_ops.top_k, (TUNABLE,), specimens)
