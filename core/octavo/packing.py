"""From a plan to the arrays that a step reads, NumPy on the host: some microseconds, and one for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from octavo.backend import AttentionMetadata
from octavo.scheduling import Chunk, Plan
from octavo.scheduling import Sequence as RunningSequence

Int32Array = NDArray[np.int32]

SMALLEST_BUCKET = 8
"""Least size a static dimension is padded to: below it, padding costs less than one more compilation."""


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """The tokens of a plan, int32 all, padded where that was asked for.

    lane_of_token: on an asynchronous device, the lane of each pending token, whose id is 0 here; -1 for known ones.
    """

    token_ids: Int32Array  # [tokens]
    lane_of_token: Int32Array | None  # [tokens]
    attention: AttentionMetadata


@dataclass(frozen=True, slots=True)
class StepShape:
    """How large a step is, before padding: sequences, the tokens that each of them computes, the width of their block
    tables; rows of logits, 0 for one a sequence.
    """

    sequences: int
    tokens: int
    blocks: int
    rows: int = 0

    @property
    def decode_only(self) -> bool:
        return self.tokens == 1


class Packer:
    """Packs plans, and keeps the block tables of the running sequences from step to step, a row for each lane.

    A decode writes one entry of its row at most, whatever the length of its context: the entries before the block it
    writes to do not change as long as the sequence keeps its blocks (`Sequence.admission` tells). Every array that it
    gives out is new, since a device may keep a view of it.
    """

    def __init__(self, lanes: int, block_size: int, max_model_len: int, asynchronous: bool) -> None:
        self._block_size = block_size
        self._asynchronous = asynchronous
        self._tables = np.zeros((lanes, -(-max_model_len // block_size)), np.int32)
        self._admissions = [0] * lanes  # whose table each row is
        self._last_blocks = [0] * lanes  # the last entry of each row

    def pack(self, plan: Plan, pad: bool) -> PackedPlan:
        """pad: to the sizes of a bucket (see `padded_size`)."""
        chunks, num_decodes, tokens = plan.chunks, plan.num_decodes, plan.num_tokens
        lanes = np.array([chunk.sequence.lane for chunk in chunks], np.int32)
        columns = self._decodes(chunks[:num_decodes])  # [3, tokens]
        sequences = np.arange(len(chunks), dtype=np.int32)
        if decode_only := num_decodes == len(chunks):
            starts = np.arange(tokens + 1, dtype=np.int32)
            lengths = columns[1] + 1
        else:
            counts = [chunk.count for chunk in chunks]
            columns = np.concatenate([columns, *map(self._prefill, chunks[num_decodes:])], axis=1)
            sequences = np.repeat(sequences, counts)
            starts = np.array(list(accumulate(counts, initial=0)), np.int32)
            lengths = np.array([chunk.start + chunk.count for chunk in chunks], np.int32)
        token_ids, positions, slots = columns

        width = -(-int(lengths.max()) // self._block_size)
        rows, size = padded_size(len(chunks), pad), padded_size(tokens, pad)
        attention = AttentionMetadata(
            positions=padded(positions, size),
            slots=padded(slots, size),
            sequences=padded(sequences, size),
            query_starts=padded(starts, rows + 1, fill=tokens),
            context_lengths=padded(lengths, rows),
            block_tables=_padded_table(self._tables[lanes, :width], rows, padded_size(width, pad)),
            decode_only=decode_only,
        )
        lane_of_token = None
        if self._asynchronous:
            lane_of_token = padded(np.where(token_ids < 0, lanes[sequences], np.int32(-1)), size, fill=-1)
            token_ids = np.maximum(token_ids, 0)
        return PackedPlan(padded(token_ids, size), lane_of_token, attention)

    def rehearsal(self, shape: StepShape, pad: bool) -> PackedPlan:
        """A step of that shape for nobody: every sequence begins with token 0 and lives in the null block, whose slots
        are written and read over and over. pad: as for `pack`.
        """
        count, tokens = shape.sequences, shape.sequences * shape.tokens
        positions = np.tile(np.arange(shape.tokens, dtype=np.int32), count)
        rows, size = padded_size(count, pad), padded_size(tokens, pad)
        attention = AttentionMetadata(
            positions=padded(positions, size),
            slots=padded(positions % self._block_size, size),
            sequences=padded(np.repeat(np.arange(count, dtype=np.int32), shape.tokens), size),
            query_starts=padded(np.arange(count + 1, dtype=np.int32) * shape.tokens, rows + 1, fill=tokens),
            context_lengths=padded([shape.tokens] * count, rows),
            block_tables=np.zeros((rows, padded_size(shape.blocks, pad)), np.int32),
            decode_only=shape.decode_only,
        )
        lane_of_token = np.full(size, -1, np.int32) if self._asynchronous else None
        return PackedPlan(np.zeros(size, np.int32), lane_of_token, attention)

    def _decodes(self, chunks: Sequence[Chunk]) -> Int32Array:
        """Token ids (-1 for a pending token), positions and slots of chunks of one token: [3, chunks]."""
        block_size, tables = self._block_size, self._tables
        admissions, last_blocks = self._admissions, self._last_blocks
        token_ids, positions, slots = [], [], []
        for chunk in chunks:
            sequence, position = chunk.sequence, chunk.start
            known, lane = sequence.token_ids, sequence.lane
            token_ids.append(known[position] if position < len(known) else -1)
            positions.append(position)
            number = position // block_size
            block = sequence.block_table.blocks[number]
            slots.append(block * block_size + position % block_size)
            if sequence.admission != admissions[lane]:
                self._write_row(sequence, number + 1)
            elif block != last_blocks[lane]:  # begun now, or a copy of the one before
                tables[lane, number] = last_blocks[lane] = block
        return np.array([token_ids, positions, slots], np.int32)

    def _prefill(self, chunk: Chunk) -> Int32Array:
        """Token ids, positions and slots of a chunk whose tokens are all known: [3, tokens]."""
        sequence, stop = chunk.sequence, chunk.start + chunk.count
        self._write_row(sequence, -(-stop // self._block_size))
        positions = np.arange(chunk.start, stop, dtype=np.int32)
        blocks = self._tables[sequence.lane, positions // self._block_size]
        slots = blocks * self._block_size + positions % self._block_size
        return np.stack([np.array(sequence.token_ids[chunk.start : stop], np.int32), positions, slots])

    def _write_row(self, sequence: RunningSequence, width: int) -> None:
        """The first `width` blocks. Those allocated ahead are left out: a step looks no further than its context."""
        lane, blocks = sequence.lane, sequence.block_table.blocks
        row = self._tables[lane]
        row[:width] = blocks[:width]
        row[width:] = 0
        self._admissions[lane], self._last_blocks[lane] = sequence.admission, blocks[width - 1]


def padded_size(size: int, pad: bool) -> int:
    """The size itself, or padded to the next bucket: a power of two."""
    return max(SMALLEST_BUCKET, 1 << (size - 1).bit_length()) if pad else size


def padded(values: Int32Array | Sequence[int], size: int, fill: int = 0) -> Int32Array:
    """An int32 array [size] that starts with the values."""
    if len(values) == size:
        return np.asarray(values, np.int32)
    array = np.full(size, fill, np.int32)
    array[: len(values)] = values
    return array


def _padded_table(tables: Int32Array, rows: int, width: int) -> Int32Array:
    if tables.shape == (rows, width):
        return tables
    array = np.zeros((rows, width), np.int32)
    array[: tables.shape[0], : tables.shape[1]] = tables
    return array
