"""A step of many sequences over one pool of blocks, laid out as a real one but as unfavourably as it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from octavo.backend import AttentionMetadata, StepInputs

Int32Array = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's part in a step.

    context: tokens in the cache once the step has written its own, at least 1.
    queries: the last so many of them are this step's: 1 for a decode, `context` for a prompt that nothing of is cached.
    """

    context: int
    queries: int

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= self.context:
            raise ValueError(f"A chunk has 1 to {self.context} queries, as many as its context; not {self.queries}.")


@dataclass(frozen=True, slots=True)
class Batch:
    """A step, and who owns what in the pool that it runs over.

    chunks: a sequence each, those of a single query first, in the order of the rows of the block tables.
    tables: the blocks of each sequence in order, without padding.
    inputs: NumPy arrays, int32, for `Device.stage`. Token ids are 0; the last token of each sequence is a logit row.
    tokens: real tokens; the arrays hold more where the step is padded.
    num_blocks: blocks of the pool, the null block 0 included.
    """

    chunks: tuple[Chunk, ...]
    block_size: int
    tables: tuple[tuple[int, ...], ...]
    inputs: StepInputs
    tokens: int
    num_blocks: int

    def slots(self, sequence: int, positions: Sequence[int] | NDArray[np.integer]) -> Int32Array:
        """The slots in which a sequence's tokens at `positions` live."""
        where = np.asarray(positions, np.int64)
        blocks = np.asarray(self.tables[sequence], np.int64)
        return (blocks[where // self.block_size] * self.block_size + where % self.block_size).astype(np.int32)

    @property
    def free_blocks(self) -> tuple[int, ...]:
        """The blocks that belong to no sequence, the null block first."""
        owned = {block for table in self.tables for block in table}
        return tuple(block for block in range(self.num_blocks) if block not in owned)

    def rows(self, sequence: int) -> slice:
        """The sequence's tokens among those of the step."""
        starts = self.inputs.attention.query_starts
        return slice(int(starts[sequence]), int(starts[sequence + 1]))

    def describe(self) -> str:
        """The shapes of the step, for a message."""
        shown = [f"{chunk.queries} of {chunk.context}" for chunk in self.chunks[:6]]
        more = f" and {len(self.chunks) - 6} more" if len(self.chunks) > 6 else ""
        padding = len(self.inputs.token_ids) - self.tokens
        padded = f", {padding} padding tokens" if padding else ""
        empty = len(self.inputs.attention.context_lengths) - len(self.chunks)
        padded += f", {empty} padding sequences without tokens" if empty else ""
        return f"queries of contexts {', '.join(shown)}{more}{padded}; blocks of {self.block_size}"


def lay_out(
    rng: np.random.Generator,
    chunks: Sequence[Chunk],
    block_size: int,
    *,
    pad_tokens: int = 0,
    pad_sequences: int = 0,
    pad_blocks: int = 0,
    shared: Mapping[int, tuple[int, int]] = MappingProxyType({}),
) -> Batch:
    """Chunks over a pool, decodes first, the order otherwise kept.

    Blocks are dealt from a shuffled pool, so that no sequence's are in order or side by side, and between them lie
    blocks that belong to nobody. Block 0 is the null block and belongs to no one.

    pad_tokens, pad_sequences, pad_blocks: rows and columns beyond the real ones, as the runner pads to a bucket.
    shared: for a sequence, (another one of a lower index, n): its first n blocks are that one's. Indices are those of
        `Batch.chunks`. Raises ValueError where one of the two has fewer than n blocks.
    """
    ordered = tuple(sorted(chunks, key=lambda chunk: chunk.queries > 1))
    counts = [-(-chunk.context // block_size) for chunk in ordered]
    pool = 1 + rng.permutation(sum(counts) + 3 + sum(counts) // 4)
    dealt = iter(pool.tolist())
    tables: list[tuple[int, ...]] = []
    for sequence, count in enumerate(counts):
        owner, prefix = shared.get(sequence, (sequence, 0))
        if prefix and not (owner < sequence and prefix <= min(count, counts[owner])):
            raise ValueError(f"Sequence {sequence} cannot share {prefix} blocks of sequence {owner}.")
        first = tables[owner][:prefix] if prefix else ()
        tables.append(first + tuple(next(dealt) for _ in range(count - prefix)))
    return assemble(
        ordered,
        tables,
        block_size,
        num_blocks=1 + len(pool),
        pad_tokens=pad_tokens,
        pad_sequences=pad_sequences,
        pad_blocks=pad_blocks,
    )


def assemble(
    chunks: Sequence[Chunk],
    tables: Sequence[Sequence[int]],
    block_size: int,
    *,
    num_blocks: int,
    pad_tokens: int = 0,
    pad_sequences: int = 0,
    pad_blocks: int = 0,
) -> Batch:
    """The step of these chunks, decodes first, over block tables that are given. The rest as `lay_out`."""
    tokens = sum(chunk.queries for chunk in chunks)
    rows, width = len(chunks) + pad_sequences, max((len(table) for table in tables), default=1) + pad_blocks
    positions, slots, sequences = (np.zeros(tokens + pad_tokens, np.int32) for _ in range(3))
    starts, lengths = np.full(rows + 1, tokens, np.int32), np.zeros(rows, np.int32)
    block_tables = np.zeros((rows, width), np.int32)
    start = 0
    for row, (chunk, table) in enumerate(zip(chunks, tables, strict=True)):
        mine = slice(start, start + chunk.queries)
        positions[mine] = np.arange(chunk.context - chunk.queries, chunk.context)
        sequences[mine] = row
        block_tables[row, : len(table)] = table
        slots[mine] = block_tables[row, positions[mine] // block_size] * block_size + positions[mine] % block_size
        starts[row], lengths[row] = start, chunk.context
        start += chunk.queries
    attention = AttentionMetadata(
        positions=positions,
        slots=slots,
        sequences=sequences,
        query_starts=starts,
        context_lengths=lengths,
        block_tables=block_tables,
        decode_only=all(chunk.queries == 1 for chunk in chunks),
    )
    inputs = StepInputs(
        token_ids=np.zeros(tokens + pad_tokens, np.int32),
        logit_rows=starts[1 : len(chunks) + 1] - 1,
        attention=attention,
    )
    return Batch(tuple(chunks), block_size, tuple(tuple(table) for table in tables), inputs, tokens, num_blocks)
