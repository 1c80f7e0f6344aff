"""A block pool for tests, in which what reads a block that it does not own is seen."""

from __future__ import annotations

import random

from octavo.cache.block_pool import BlockPool
from octavo.cache.manager import Copies


class SanitizedPool(BlockPool):
    """Hands out blocks in a shuffled order, and records which of them hold nothing that anybody may read.

    A kind of address sanitizer (Serebryany et al. 2012) for the KV cache: whoever owns the cache's memory fills the
    `abandoned` blocks with NaN before each step. Those are all blocks at first, the null block included; then each one
    when it is given back without being kept for its prefix, and again when it is taken.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        random.Random(num_blocks).shuffle(self._free)
        self._abandoned = set(range(num_blocks))

    def take(self) -> int:
        block = super().take()
        # Filled again: it may have been evicted just now, or written by a step that was not to.
        self._abandoned.add(block)
        return block

    def recycle(self, block: int, cached: bool) -> None:
        super().recycle(block, cached)
        if not cached:
            self._abandoned.add(block)

    def forget_cached(self) -> None:
        self._abandoned.update(self._cached)
        super().forget_cached()

    def take_abandoned(self, copies: Copies) -> list[int]:
        """The abandoned blocks, each once; what these copies still read is left for the next call."""
        abandoned = self._abandoned.difference(source for source, _ in copies)
        self._abandoned -= abandoned
        return sorted(abandoned)
