"""The pool of KV blocks: who is free, who is held and how often, who is kept for its contents."""

from __future__ import annotations

from collections import OrderedDict

from octavo.cache.integrity import require

NULL_BLOCK = 0
"""The block that is never allocated: padding writes go there, and nobody reads it."""


class BlockPool:
    """Blocks `1 .. num_blocks - 1` with reference counts; block 0 is the null block. Every operation is O(1).

    A block is in exactly one state::

        block       0       1       2       3       4       5       6       7
                +-------+-------+-------+-------+-------+-------+-------+-------+
        state   | null  | used  | used  | cached| free  | used  | cached| free  |
        held by |   -   |   1   |   3   |   0   |   0   |   1   |   0   |   0   |  tables
                +-------+-------+-------+-------+-------+-------+-------+-------+
                                            |       |               |       |
                 evicted, oldest first <- [ 3,      .       ...     6 ]     |
                 taken first           <-         [ 4,                      7 ]

    *used*: at least one table holds it (three do when a prefix is shared). *cached*: nobody holds it, but its
    contents are in the prefix index, so a hit revives it. *free*: nobody holds it and nobody will ask for its
    contents. `take` empties the free list first and only then evicts cached blocks, the one used longest ago
    before the others.

    Raises `ValueError` when `num_blocks` leaves no block to allocate.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A KV cache needs at least 2 blocks, one of them the null block, and got {num_blocks}.")
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        """How many tables hold each block. [num_blocks]"""
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        # Not a plain dict: taking the first key of one whose front was deleted walks over the holes.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def total(self) -> int:
        """Blocks that can be held at all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that `take` can hand out: the free and the cached ones."""
        return len(self._free) + len(self._cached)

    def take(self) -> int:
        """Hand out a block with one reference.

        It may have been cached: the caller drops what the index says about it. Raises `IndexError` when none
        is available; callers look at `available` first.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
        else:
            raise IndexError(f"All {self.total} KV blocks are in use.")
        self.references[block] = 1
        return block

    def share(self, block: int) -> bool:
        """Add a reference to a used or cached block. True when this revived a cached one."""
        revived = self.references[block] == 0
        if revived:
            del self._cached[block]
        self.references[block] += 1
        return revived

    def release(self, block: int) -> bool:
        """Drop one reference. True when it was the last: `recycle` says what becomes of the block."""
        self.references[block] -= 1
        return self.references[block] == 0

    def recycle(self, block: int, cached: bool) -> None:
        """Make a block without references available again, as the most recently used of its kind."""
        if cached:
            self._cached[block] = None
        else:
            self._free.append(block)

    def forget_cached(self) -> None:
        """Turn every cached block into a free one."""
        self._free.extend(self._cached)
        self._cached.clear()

    def is_cached(self, block: int) -> bool:
        return block in self._cached

    def check_integrity(self) -> None:
        """Raise `IntegrityError` unless every block is exactly one of null, free, cached and used."""
        free = set(self._free)
        require(len(free) == len(self._free), "A block is on the free list twice.")
        require(self.references[NULL_BLOCK] == 0, "The null block is held by a table.")
        for block, references in enumerate(self.references):
            states = [block == NULL_BLOCK, block in free, block in self._cached, references > 0]
            require(references >= 0, f"Block {block} has {references} references.")
            require(
                sum(states) == 1,
                f"Block {block} must be exactly one of null, free, cached and used, but these are {states} "
                f"(a copied block is none of them until settle()).",
            )
