"""The operation: what is launched for a call, decided from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton

from octavo.backend import AttentionMetadata
from octavo_torch.kernels.attention.attend import attend
from octavo_torch.kernels.attention.merge import merge
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.scaled_kv import FORMATS
from octavo_torch.kernels.tuning import Tunable

TUNABLE = Tunable(
    "paged_attention",
    facts=("dtype", "kv_dtype", "head_size", "queries"),
    defaults={
        "rows": 16,
        "tile": 64,
        "num_warps": 4,
        "num_stages": 2,
        "programs": 16,
        "least_split": 256,
        "most_splits": 256,
        "float8": 0,
        "tf32x3": 0,
    },
)
"""queries, a fact: tokens of a sequence in this step, on average and rounded down to a power of two; 1 for decodes.

rows: query heads times tokens of a tile, at least those of one token. tile: keys of one pass. programs: at most so many
for each processor are made by splitting. least_split: keys of a split, rounded up to whole tiles. most_splits: 1 for
none, which makes every result independent of the batch. float8: 1 where the processor converts float8_e4m3fn and
float8_e5m2 itself. tf32x3: 1 where the matrix units take tf32 but not float32.
"""

LARGEST_HEAD = 256
"""The largest head size. Any size up to it works; sizes that are multiples of 8 load 16 bytes at a time."""


def paged_attention(
    runtime: KernelRuntime,
    q: torch.Tensor,
    kv: PagedKV,
    meta: AttentionMetadata,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`Ops.paged_attention`. q [tokens, heads, head_size], heads contiguous inside, else of any strides.

    A tile is a few tokens of one sequence with all query heads of a KV head, so that a group reads its keys once; one
    launch takes decodes, prompts and parts of prompts beside each other. Where tiles are few, each tile's keys are
    split among several programs, and a second kernel merges what they found.

    In how many splits, the host decides from shapes, in powers of two: only so a batch of 256 contexts is spared work
    that a batch of one needs to fill the chip. Where the splits lie depends on the sequence's own context and on that
    number, nothing else; a context shorter than two of the least splits has one, whatever the batch. So the same
    sequence in another batch may differ by the rounding of a sum taken in another order, and among batches with the
    same number of splits and tiles of the same shape not by a bit.

    Raises ValueError for a head size, strides or a scale that the kernel does not take.
    """
    tokens, heads, head_size = q.shape
    kv_heads = kv.keys.shape[2]
    _check(q, kv, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not tokens:
        return out
    tiling = _Tiling.choose(runtime, q, kv, meta, window)
    partials = _partials(out, tiling.splits)
    shared: dict[str, Any] = {
        "sinks": sinks,
        "out": out,
        **partials,
        "query_starts": meta.query_starts,
        "context_lengths": meta.context_lengths,
        "tokens": tokens,
        "window": window or 0,
        "HEAD_SIZE": head_size,
        "HEAD": max(16, triton.next_power_of_2(head_size)),
        "BLOCK_Q": tiling.block_q,
        "TILE": tiling.tile,
        "LEAST_SPLIT": tiling.least_split,
        "WINDOWED": window is not None,
        "SINKS": sinks is not None,
        "INTERPRETED": runtime.target.interpreted,
    }
    # Scores times log2(e): the kernel's exponentials are powers of two.
    factor = scale * math.log2(math.e)
    runtime.launch(
        attend,
        (tiling.tiles, kv_heads, tiling.splits),
        {
            **shared,
            **_pages(kv),
            "q": q,
            "block_tables": meta.block_tables,
            "inner": 0.0 if softcap is None else 2.0 * factor / softcap,
            "outer": factor if softcap is None else softcap * math.log2(math.e),
            "sequences": meta.context_lengths.shape[0],
            "table_row": meta.block_tables.stride(0),
            "q_token": q.stride(0),
            "q_head": q.stride(1),
            "GROUP": heads // kv_heads,
            "BLOCK_SIZE": kv.block_size,
            "ROWS": tiling.rows,
            "DECODE": meta.decode_only,
            "CAPPED": softcap is not None,
            "SPLIT": tiling.splits > 1,
            "FLOAT8": tiling.float8,
            "TF32X3": tiling.tf32x3,
        },
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if tiling.splits > 1:
        rows, parts = _merged_at_a_time(shared["HEAD"], tiling.splits)
        runtime.launch(
            merge,
            (triton.cdiv(tokens * heads, rows),),
            {
                **shared,
                "token_sequences": meta.sequences,
                "splits": tiling.splits,
                "HEADS": heads,
                "ROWS": rows,
                "PARTS": parts,
            },
            num_warps=4,
        )
    return out


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How a call is cut into programs.

    rows, block_q: query rows and tokens of a tile. tile: keys of one pass. tiles: query tiles. splits: programs among
    which the keys of a tile are divided at the most; least_split: keys of a split at the least.
    """

    rows: int
    block_q: int
    tile: int
    tiles: int
    splits: int
    least_split: int
    num_warps: int
    num_stages: int
    float8: bool
    tf32x3: bool

    @classmethod
    def choose(
        cls, runtime: KernelRuntime, q: torch.Tensor, kv: PagedKV, meta: AttentionMetadata, window: int | None
    ) -> _Tiling:
        tokens, heads, head_size = q.shape
        sequences, width = meta.block_tables.shape
        kv_heads = kv.keys.shape[2]
        group = heads // kv_heads
        # At least 2 where a sequence may have more than one token: rows of a table that are for decodes are for them.
        queries = 1 if meta.decode_only else max(2, _power_of_two(tokens // sequences))
        tuned = runtime.tuned(
            TUNABLE,
            dtype=dtype_name(q.dtype),
            kv_dtype=dtype_name(kv.keys.dtype),
            head_size=head_size,
            queries=queries,
        )
        rows = max(tuned["rows"], triton.next_power_of_2(group))
        block_q = 1 if meta.decode_only else rows // group
        tiles = max(tokens, sequences) if meta.decode_only else tokens // block_q + sequences + 1
        keys = width * kv.block_size
        if window is not None:
            keys = min(keys, window + block_q + tuned["tile"])
        least_split = triton.cdiv(tuned["least_split"], tuned["tile"]) * tuned["tile"]
        room = min(
            tuned["most_splits"],
            tuned["programs"] * runtime.target.processors // (tiles * kv_heads),
            triton.cdiv(keys, least_split),
        )
        return cls(
            rows=rows,
            block_q=block_q,
            tile=tuned["tile"],
            tiles=tiles,
            splits=_power_of_two(room),
            least_split=least_split,
            num_warps=tuned["num_warps"],
            num_stages=tuned["num_stages"],
            # The interpreter rounds float8 wrongly; without it the same entries come out of shifted bits.
            float8=bool(tuned["float8"]) and not runtime.target.interpreted,
            tf32x3=bool(tuned["tf32x3"]) and q.dtype == torch.float32,
        )


def _partials(out: torch.Tensor, splits: int) -> dict[str, torch.Tensor | None]:
    """Where splits leave what they found: float32, by token, head and split."""
    if splits == 1:
        return {"partial_outputs": None, "partial_bests": None, "partial_totals": None}
    tokens, heads, head_size = out.shape
    shape = (tokens, heads, splits)
    return {
        "partial_outputs": torch.empty((*shape, head_size), dtype=torch.float32, device=out.device),
        "partial_bests": torch.empty(shape, dtype=torch.float32, device=out.device),
        "partial_totals": torch.empty(shape, dtype=torch.float32, device=out.device),
    }


def _merged_at_a_time(head: int, splits: int) -> tuple[int, int]:
    """Query heads and splits that a merging program loads at once: 4096 entries, of one head if it has so many."""
    entries = 4096 // head
    parts = min(splits, entries)
    return entries // parts, parts


def _pages(kv: PagedKV) -> dict[str, Any]:
    """The cache as the kernel's arguments; entries of eight bits as bytes."""
    entry = FORMATS.get(kv.keys.dtype)
    block, slot, head, _ = kv.keys.stride()
    scales_block, scales_slot, scales_head = (0, 0, 0) if kv.key_scales is None else kv.key_scales.stride()
    return {
        "keys": kv.keys if entry is None else kv.keys.view(torch.uint8),
        "values": kv.values if entry is None else kv.values.view(torch.uint8),
        "key_scales": kv.key_scales,
        "value_scales": kv.value_scales,
        "kv_block": block,
        "kv_slot": slot,
        "kv_head": head,
        "scales_block": scales_block,
        "scales_slot": scales_slot,
        "scales_head": scales_head,
        "MANTISSA": None if entry is None else entry.mantissa,
    }


def _power_of_two(number: int) -> int:
    """The largest that is not above the number; 1 at the least."""
    return 1 << (max(1, number).bit_length() - 1)


def _check(q: torch.Tensor, kv: PagedKV, scale: float) -> None:
    if q.shape[2] > LARGEST_HEAD:
        raise ValueError(f"Heads of {q.shape[2]} were asked for; paged attention takes heads of up to {LARGEST_HEAD}.")
    if kv.keys.stride() != kv.values.stride():
        raise ValueError(
            f"Keys and values lie alike in memory; keys have strides {kv.keys.stride()} and values "
            f"{kv.values.stride()}."
        )
    if not scale > 0.0:
        raise ValueError(f"Scores are multiplied by a scale above 0, not by {scale}.")
