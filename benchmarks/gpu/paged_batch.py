"""Batches of sequences in a paged cache full of random numbers, several of them in turn so that no cache helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.part import AbsentError, Bench
from octavo.backend import AttentionMetadata, DType, KVLayout
from octavo.backend.tree import tree_map

_WRITTEN = 1 << 16
"""Slots that are filled at a time."""

_MOST_BATCHES = 64


@dataclass(frozen=True, slots=True)
class PagedBatches:
    """`batches` batches of the same shape over one cache, each with blocks of its own.

    queries: tokens of each sequence that attend, its last ones. kv: the cache of one layer, as the backend has it.
    tables: int32 [batches, sequences, blocks], on the host. q: [tokens, heads, head_size], one for each batch.
    """

    sequences: int
    queries: int
    context: int
    layout: KVLayout
    kv: Any
    tables: np.ndarray[Any, np.dtype[np.int32]]
    metas: Sequence[AttentionMetadata]
    q: Sequence[torch.Tensor]

    @property
    def scale(self) -> float:
        return float(self.layout.head_size**-0.5)

    @property
    def kv_bytes(self) -> int:
        """Of the contexts of one batch."""
        entries = 2 * self.sequences * self.context * self.layout.kv_heads * self.layout.head_size
        return entries * self.layout.dtype.itemsize

    @property
    def moved(self) -> int:
        """Bytes that one call reads and writes at the least: keys, values, queries and results once."""
        return self.kv_bytes + 2 * self.q[0].numel() * self.q[0].element_size()

    @property
    def flops(self) -> int:
        """Operations of one call: two products for each pair of a query and a key that it sees."""
        pairs = self.queries * (2 * self.context - self.queries + 1) // 2 * self.sequences
        return 4 * self.layout.query_heads * self.layout.head_size * pairs


def make_batches(bench: Bench, sequences: int, queries: int, context: int) -> PagedBatches:
    """The batches of a shape. Raises AbsentError where they do not fit the device's memory."""
    scale, device = bench.scale, bench.device
    dtype = DType(scale.dtype)
    block_size = device.info.capabilities.block_sizes[0]
    layout = KVLayout(1, scale.kv_heads, scale.head_size, block_size, dtype, (None,), scale.heads)
    width = -(-context // block_size)
    one = device.kv_block_bytes(layout) * width * sequences
    batches = max(1, min(_MOST_BATCHES, math.ceil(scale.rotated_bytes / one)))
    if batches * one > 0.8 * device.memory().free:
        raise AbsentError(f"A cache of {batches * one:,} bytes does not fit; {device.memory().free:,} are free.")
    blocks = batches * sequences * width
    kv = _filled(bench, layout, blocks + 1)
    rng = np.random.default_rng(context)
    tables = (1 + rng.permutation(blocks)).astype(np.int32).reshape(batches, sequences, width)
    shape = (sequences * queries, scale.heads, scale.head_size)
    q = [torch.randn(shape, device=bench.torch_device).to(_torch_dtype(dtype)) for _ in range(batches)]
    metas = [_meta(device, table, queries, context, block_size) for table in tables]
    return PagedBatches(sequences, queries, context, layout, kv, tables, metas, q)


def _filled(bench: Bench, layout: KVLayout, blocks: int) -> Any:
    """One layer's cache with random numbers in every slot. The same ones recur, which no operation can tell."""
    device = bench.device
    (kv,) = device.allocate_kv(layout, blocks)
    last = blocks * layout.block_size - 1
    count = min(_WRITTEN, last + 1)
    shape = (count, layout.kv_heads, layout.head_size)
    k, v = (torch.randn(shape, device=bench.torch_device).to(_torch_dtype(layout.dtype)) for _ in range(2))
    for start in range(0, last + 1, count):
        slots = np.minimum(np.arange(start, start + count), last).astype(np.int32)
        kv = device.ops.write_kv(kv, k, v, device.upload(slots))
    return kv


def _meta(
    device: Any, table: np.ndarray[Any, np.dtype[np.int32]], queries: int, context: int, block_size: int
) -> AttentionMetadata:
    sequences = len(table)
    positions = np.tile(np.arange(context - queries, context, dtype=np.int32), sequences)
    of_token = np.repeat(np.arange(sequences, dtype=np.int32), queries)
    meta = AttentionMetadata(
        positions=positions,
        slots=table[of_token, positions // block_size] * block_size + positions % block_size,
        sequences=of_token,
        query_starts=np.arange(sequences + 1, dtype=np.int32) * queries,
        context_lengths=np.full(sequences, context, np.int32),
        block_tables=np.ascontiguousarray(table),
        decode_only=queries == 1,
    )
    # One by one: a device's `stage` may hand out its buffers again after two steps, and these stay.
    return tree_map(device.upload, meta)


def _torch_dtype(dtype: DType) -> torch.dtype:
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found
