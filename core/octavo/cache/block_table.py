"""The block table of one sequence."""

from __future__ import annotations

from collections import abc

from octavo.cache.prefix_index import Namespace


class BlockTable:
    """Which block holds each stretch of `block_size` tokens of one sequence.

    Made, filled and emptied by the block manager. `token_ids` is the sequence's own list, read and never
    changed here; it only ever grows, so what was hashed stays true. Position `p` lives in slot `blocks[p //
    block_size] * block_size + p % block_size`.
    """

    __slots__ = (
        "block_size",
        "blocks",
        "digests",
        "namespace",
        "num_computed",
        "num_linked",
        "parent",
        "token_ids",
    )

    def __init__(self, token_ids: abc.Sequence[int], block_size: int, namespace: Namespace) -> None:
        self.token_ids = token_ids
        self.block_size = block_size
        self.namespace = namespace
        self.blocks: list[int] = []
        self.num_computed = 0
        """Tokens whose keys and values are in the cache; every later position is still to be written."""
        self.digests: list[bytes] = []
        """Digests of the first full blocks, as far as someone asked. They outlive the blocks: hashed once."""
        self.num_linked = 0
        """Leading blocks that were looked up in, or entered into, the prefix index."""
        self.parent: Namespace | int | None = namespace
        """What the next linked block hangs from; None once the chain is broken: no more is entered."""

    def __len__(self) -> int:
        return len(self.blocks)

    def slot(self, position: int) -> int:
        """The slot of the token at `position`. Raises `IndexError` past the last block."""
        return self.blocks[position // self.block_size] * self.block_size + position % self.block_size

    def tokens_of(self, index: int) -> tuple[int, ...]:
        """The tokens of block number `index`; fewer than `block_size` at the end of the sequence."""
        start = index * self.block_size
        return tuple(self.token_ids[start : start + self.block_size])

    def filled(self, index: int) -> int:
        """How many slots of block number `index` hold a computed token."""
        return max(0, min(self.num_computed - index * self.block_size, self.block_size))
