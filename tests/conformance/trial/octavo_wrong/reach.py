"""Faults of `paged_attention`: which slots a token sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import AttentionMetadata, Ops
from octavo_wrong.fault import Fault, in_ops
from octavo_wrong.plain import Call, PlainAttention, WrongCall

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "paged_attention",
        BlockTableOffByOne,
        BlockNumberOffByOne,
        BlockTableOfNeighbour,
        BlockSizeAssumed,
        BlockAtBorderLost,
        BlockNumbersInSixteenBits,
        SequencesIgnored,
        ContextOneTooShort,
        ContextOneTooLong,
        BlockTailRead,
        LongContextsCut,
        LastSplitDropped,
        WindowOneTooLong,
        WindowOneTooShort,
        WindowIgnoredInDecodes,
        WindowFromChunkStart,
        WindowRoundedToBlocks,
        CausalMaskOffInChunk,
        CausalMaskStrict,
        PrefillSeesOnlyItself,
        PrefillPositionsFromZero,
        MaskMultiplied,
    )


class BlockTableOffByOne(WrongCall):
    """A sequence's block i is taken from entry i + 1 of its block table, the last one from entry 0."""

    def wrong(self, call: Call) -> Call:
        return call.with_meta(block_tables=np.roll(call.meta.block_tables, -1, axis=1))


class BlockNumberOffByOne(WrongCall):
    """The block read is the one after that of the block table."""

    def wrong(self, call: Call) -> Call:
        return call.with_meta(block_tables=(call.meta.block_tables + 1) % call.kv.shape[1])


class BlockTableOfNeighbour(WrongCall):
    """Each sequence but the last reads through the block table of the next one."""

    def wrong(self, call: Call) -> Call:
        tables = call.meta.block_tables
        return call.with_meta(block_tables=np.concatenate([tables[1:], tables[-1:]]))


class BlockSizeAssumed(PlainAttention):
    """The walk over the block table assumes blocks of 16 slots, whatever the cache has."""

    def gather(self, kv: Array, table: Array) -> tuple[Array, Array]:
        size = kv.shape[2]
        at = np.arange(len(table) * size)
        blocks = table[np.minimum(at // 16, len(table) - 1)]
        return kv[0][blocks, at % 16 % size], kv[1][blocks, at % 16 % size]


class BlockAtBorderLost(PlainAttention):
    """The last block is left out where the context ends with it."""

    def gather(self, kv: Array, table: Array) -> tuple[Array, Array]:
        self._block_size = kv.shape[2]
        return super().gather(kv, table)

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        lost = length > self._block_size and length % self._block_size == 0
        return right & (at < length - self._block_size) if lost else right


class BlockNumbersInSixteenBits(WrongCall):
    """Block tables are kept in 16 bits: of block 65536 + n block n is read."""

    def wrong(self, call: Call) -> Call:
        return call.with_meta(block_tables=call.meta.block_tables & 0xFFFF)


class SequencesIgnored(Ops):
    """Row i of a step is taken for a token of sequence i, as it is in a step of decodes."""

    def paged_attention(self, q: Array, kv: Array, meta: AttentionMetadata, *rest: Any, **named: Any) -> Array:
        rows = np.minimum(np.arange(len(q), dtype=np.int32), len(meta.block_tables) - 1)
        return super().paged_attention(q, kv, replace(meta, sequences=rows), *rest, **named)


class ContextOneTooShort(WrongCall):
    """The context ends one token early: the newest token is not seen."""

    def wrong(self, call: Call) -> Call:
        return call.with_meta(context_lengths=np.maximum(call.meta.context_lengths - 1, 0))


class ContextOneTooLong(PlainAttention):
    """The newest token of each sequence sees one slot more, which nobody has written."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        return right | ((at == length) & (positions[:, None] == length - 1))


class BlockTailRead(PlainAttention):
    """The newest token of each sequence sees the rest of the last block as well."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        return right | ((at >= length) & (positions[:, None] == length - 1))


class LongContextsCut(PlainAttention):
    """A context of more than 512 tokens is cut to its first 512."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        return super().seen(at, positions, length, window) & (at < 512)


class LastSplitDropped(PlainAttention):
    """A context is split into parts of 128 slots, and of several parts the last is lost unless it is full."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        return right & (at < length // 128 * 128) if length > 128 else right


class WindowOneTooLong(WrongCall):
    """A token at p sees window + 1 tokens."""

    def wrong(self, call: Call) -> Call:
        return call if call.window is None else replace(call, window=call.window + 1)


class WindowOneTooShort(WrongCall):
    """A token at p sees window - 1 tokens, and itself in any case."""

    def wrong(self, call: Call) -> Call:
        return call if call.window is None else replace(call, window=max(1, call.window - 1))


class WindowIgnoredInDecodes(WrongCall):
    """The kernel for steps of decodes alone has no window."""

    def wrong(self, call: Call) -> Call:
        return replace(call, window=None) if call.meta.decode_only else call


class WindowFromChunkStart(PlainAttention):
    """All tokens of a prefill chunk have the window of its first one."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, None)
        return right if window is None else right & (at > positions[0] - window)


class WindowRoundedToBlocks(PlainAttention):
    """A block that the window covers in part is passed over."""

    def gather(self, kv: Array, table: Array) -> tuple[Array, Array]:
        self._block_size = kv.shape[2]
        return super().gather(kv, table)

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        if window is None:
            return right
        size = self._block_size
        first = -(-np.maximum(positions - window + 1, 0) // size) * size  # the first whole block
        return right & (at >= np.minimum(first, positions // size * size)[:, None])


class CausalMaskOffInChunk(PlainAttention):
    """The tokens of a prefill chunk see each other in both directions."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        later = (at > positions[:, None]) & (at < length)
        return super().seen(at, positions, length, window) | later


class CausalMaskStrict(PlainAttention):
    """In a prefill chunk a token does not see itself, but for the first of its sequence."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        return right & ((at < positions[:, None]) | (positions[:, None] == 0)) if len(positions) > 1 else right


class PrefillSeesOnlyItself(PlainAttention):
    """A prefill chunk attends to its own tokens and not to the cached ones before it."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        right = super().seen(at, positions, length, window)
        return right & (at >= positions[0]) if len(positions) > 1 else right


class PrefillPositionsFromZero(PlainAttention):
    """The causal mask of a prefill chunk counts from the chunk's start, not from the sequence's."""

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        if len(positions) > 1:
            positions = positions - positions[0]
        return super().seen(at, positions, length, window)


class MaskMultiplied(PlainAttention):
    """Slots that are not seen get the weight 0 and are summed all the same: 0 * NaN is NaN."""

    def values(self, values: Array, seen: Array) -> Array:
        return values
