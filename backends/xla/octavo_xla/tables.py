"""How large the block tables of a step are: beyond the largest so far, so that lengths seldom name programs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from octavo.backend import AttentionMetadata
from octavo_xla.kernels.tiling import SMEM_TABLE_BYTES

_FEWEST_BLOCKS = 128
"""Four kilobytes for eight sequences: less than the rest of a step's inputs."""

_GROWTH = 8
"""Tables become so many times wider: contexts of up to a million tokens have four widths."""


@dataclass(frozen=True, slots=True)
class StepTables:
    """The tables of a step, which has so many tokens."""

    tokens: int
    sequences: int
    blocks: int

    @classmethod
    def of(cls, meta: AttentionMetadata) -> StepTables:
        return cls(len(meta.positions), *meta.block_tables.shape)


@dataclass(slots=True)
class TableSize:
    """The most sequences and blocks that a step had so far."""

    sequences: int = 0
    blocks: int = 0

    def grow(self, meta: AttentionMetadata) -> bool:
        """Take a step's tables into account; whether they are larger than all before."""
        sequences, blocks = meta.block_tables.shape
        before = self.sequences, self.blocks
        self.sequences, self.blocks = max(self.sequences, sequences), max(self.blocks, blocks)
        return before != (self.sequences, self.blocks)

    def target(self, tables: StepTables) -> StepTables:
        """What such tables are widened to. A sequence has a token at least, so a step has no more of them than tokens:
        decodes are no wider than their own bucket.
        """
        sequences = max(tables.sequences, min(self.sequences, tables.tokens))
        return replace(tables, sequences=sequences, blocks=coarse_width(self.blocks, sequences))

    def outgrows(self, tables: StepTables) -> bool:
        """Whether a step with as many tokens would be widened to others than such tables."""
        return self.target(tables) != tables

    def widened(self, meta: AttentionMetadata) -> AttentionMetadata:
        """With padding sequences and blocks until it is not outgrown; as it is where it is on the device already."""
        own = StepTables.of(meta)
        target = self.target(own)
        arrays = (meta.block_tables, meta.query_starts, meta.context_lengths)
        if target == own or not all(isinstance(array, np.ndarray) for array in arrays):
            return meta
        sequences = target.sequences - own.sequences
        return replace(
            meta,
            block_tables=np.pad(meta.block_tables, ((0, sequences), (0, target.blocks - own.blocks))),
            query_starts=np.pad(meta.query_starts, (0, sequences), mode="edge"),
            context_lengths=np.pad(meta.context_lengths, (0, sequences)),
        )


def coarse_width(blocks: int, sequences: int) -> int:
    """Columns of the tables of so many sequences, at least `blocks`.

    As wide as they may be without another pass of the TPU's attention, whose scalar memory holds the tables of a pass.
    """
    width = _FEWEST_BLOCKS
    while width < blocks:
        width *= _GROWTH
    return max(blocks, min(width, SMEM_TABLE_BYTES // (4 * max(sequences, 1))))
