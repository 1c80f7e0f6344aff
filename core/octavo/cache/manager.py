"""Paged KV memory: blocks are given to sequences, shared, copied before they diverge, and taken back."""

from __future__ import annotations

from collections import Counter, abc
from dataclasses import dataclass

from octavo.cache.block_pool import BlockPool
from octavo.cache.block_table import BlockTable
from octavo.cache.integrity import IntegrityError, require
from octavo.cache.prefix_index import CachedBlock, Namespace, PrefixIndex

Copies = tuple[tuple[int, int], ...]
"""Pairs (source block, target block), to be copied before the step writes."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A moment of the cache. Blocks: used + cached + free = total (the null block is in none of them).

    Slots count shared blocks once. `prefix_queries` and `prefix_hits` are tokens since the start: those of
    every sequence that was let in (again after a preemption), and those of them found computed.
    """

    total_blocks: int
    used_blocks: int
    cached_blocks: int
    free_blocks: int
    allocated_slots: int
    used_slots: int
    prefix_queries: int
    prefix_hits: int

    @property
    def waste(self) -> float:
        """Part of the allocated slots that holds no token, 0 to 1 (PagedAttention reports under 0.04)."""
        return 1 - self.used_slots / self.allocated_slots if self.allocated_slots else 0.0


class BlockManager:
    """The one owner of block tables, block pool and prefix index.

    A table lives between `begin` and `free`; every step it is `allocate`d what the step writes, and told what
    was `computed`::

        table = manager.table(token_ids)
        cached = manager.begin(table)              # None: does not fit yet
        copies = manager.allocate(table, 48)       # None: does not fit; else copy these blocks first
        manager.settle()                           # the step's last allocation was made
        manager.computed(table, 48)                # the device has written tokens [cached, 48)
        manager.free(table)

    A block is written by one table only: `allocate` copies a shared block before its holder writes into it.
    Only full blocks are entered into the prefix index, and writes go behind the computed tokens, so an
    indexed block is never written at all.

    A plan's copies are independent of each other, so a device may run them in any order or all at once: a
    target is fresh, and a block that was copied from is not handed out again before `settle`, even when its
    last holder is freed meanwhile.

    Raises `ValueError` when the pool or a block would hold nothing.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        index: PrefixIndex | None = None,
        pool: BlockPool | None = None,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"A block of {block_size} slots was asked for; it needs at least 1.")
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks) if pool is None else pool
        self._index = PrefixIndex() if index is None else index
        self._tables: set[BlockTable] = set()
        self._used_slots = 0
        self._queries = 0
        self._hits = 0
        self._sources: set[int] = set()
        self._emptied_sources: list[int] = []

    @property
    def total_blocks(self) -> int:
        """Blocks that sequences can hold."""
        return self._pool.total

    @property
    def available_blocks(self) -> int:
        """Blocks that can be allocated now."""
        return self._pool.available

    @property
    def capacity(self) -> int:
        """Tokens that one sequence alone can keep in the cache."""
        return self._pool.total * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def missing_blocks(self, table: BlockTable, num_tokens: int) -> int:
        """Blocks a table still needs to hold its first `num_tokens` tokens, copies aside."""
        return max(0, self.blocks_for(num_tokens) - len(table.blocks))

    def table(self, token_ids: abc.Sequence[int], salt: str = "", adapter: int = -1) -> BlockTable:
        """An empty table over a sequence's own, growing token list."""
        return BlockTable(token_ids, self.block_size, Namespace(salt, adapter))

    def begin(self, table: BlockTable, spare: int = 0, read_prefix: bool = True) -> int | None:
        """Give an empty table the longest computed prefix of its tokens; returns the prefix's length in
        tokens.

        None, with nothing changed, when the rest of the tokens would not fit now with `spare` blocks left
        over. At least one token is always left to compute: its logits are what the caller wants.
        """
        found = self._match(table) if read_prefix and self.enable_prefix_caching else []
        references = self._pool.references
        asleep = sum(references[entry.block] == 0 for entry in found)
        missing = self.blocks_for(len(table.token_ids)) - len(found)
        if missing + asleep + spare > self._pool.available:
            return None
        for entry in found:
            if self._pool.share(entry.block):
                self._used_slots += self.block_size
            table.blocks.append(entry.block)
        table.num_linked = len(found)
        table.num_computed = len(found) * self.block_size
        table.parent = found[-1].serial if found else table.namespace
        self._tables.add(table)
        if read_prefix and self.enable_prefix_caching:
            self._queries += len(table.token_ids)
            self._hits += table.num_computed
        return table.num_computed

    def allocate(self, table: BlockTable, num_tokens: int) -> Copies | None:
        """Make positions `num_computed .. num_tokens - 1` writable: add blocks, copy shared ones.

        Returns the copies to run before the step writes; None, with nothing changed, when the pool has too
        few blocks.
        """
        blocks = table.blocks
        references = self._pool.references
        first = table.num_computed // self.block_size
        missing = -(-num_tokens // self.block_size) - len(blocks)
        if missing == 0 and first == len(blocks) - 1 and references[blocks[first]] == 1:
            return ()  # nearly every decode, and so worth a line of its own
        shared = [index for index in range(first, len(blocks)) if references[blocks[index]] > 1]
        if missing <= 0 and not shared:
            return ()
        if max(missing, 0) + len(shared) > self._pool.available:
            return None
        copies = tuple(self._copy(table, index) for index in shared)
        for _ in range(missing):
            blocks.append(self._take())
        return copies

    def computed(self, table: BlockTable, num_tokens: int) -> None:
        """Record that the first `num_tokens` tokens are in the cache, and offer the full blocks to others."""
        before = table.num_computed
        if not before <= num_tokens <= len(table.blocks) * self.block_size:
            raise IntegrityError(
                f"{num_tokens} tokens were computed of a table with {before} in {len(table.blocks)} blocks."
            )
        # Every slot written was the table's own (allocate saw to it), so no shared slot is counted twice.
        self._used_slots += num_tokens - before
        table.num_computed = num_tokens
        if self.enable_prefix_caching and num_tokens // self.block_size > table.num_linked:
            self._link(table)

    def fork(self, parent: BlockTable, token_ids: abc.Sequence[int]) -> BlockTable:
        """A table sharing every block of the parent, for `token_ids` that start with its computed tokens."""
        child = BlockTable(token_ids, self.block_size, parent.namespace)
        for block in parent.blocks:
            self._pool.share(block)
        child.blocks = parent.blocks.copy()
        child.num_computed = parent.num_computed
        child.digests = parent.digests[: parent.num_computed // self.block_size]
        child.num_linked = parent.num_linked
        child.parent = parent.parent
        self._tables.add(child)
        return child

    def is_writable(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether positions `num_computed .. num_tokens - 1` have blocks nobody else holds or could find."""
        first = table.num_computed // self.block_size
        return self.blocks_for(num_tokens) <= len(table.blocks) and all(
            self._pool.references[block] == 1 and block not in self._index for block in table.blocks[first:]
        )

    def free(self, table: BlockTable) -> None:
        """Give back every block of a table; nothing happens to a table that has none."""
        # From the tail, so that the tail is evicted first: without its prefix it could not be found anyway.
        for index in range(len(table.blocks) - 1, -1, -1):
            block = table.blocks[index]
            if self._pool.release(block):
                self._used_slots -= table.filled(index)
                if block in self._sources:
                    self._emptied_sources.append(block)
                else:
                    self._pool.recycle(block, cached=block in self._index)
        table.blocks.clear()
        table.num_computed = table.num_linked = 0
        table.parent = table.namespace
        self._tables.discard(table)

    def settle(self) -> None:
        """Close a plan: blocks copied from that lost their last holder meanwhile can be handed out again."""
        for block in self._emptied_sources:
            # Never indexed: a copied block was partly filled.
            self._pool.recycle(block, cached=False)
        self._emptied_sources.clear()
        self._sources.clear()

    def reset_prefix_cache(self) -> None:
        """Forget every computed prefix, as after a change of weights.

        Tables keep their blocks and enter no more of them.
        """
        self._index.clear()
        self._pool.forget_cached()
        for table in self._tables:
            table.parent = None

    def stats(self) -> CacheStats:
        pool = self._pool
        used = pool.total - pool.available
        return CacheStats(
            total_blocks=pool.total,
            used_blocks=used,
            cached_blocks=pool.num_cached,
            free_blocks=pool.num_free,
            allocated_slots=used * self.block_size,
            used_slots=self._used_slots,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
        )

    def _match(self, table: BlockTable) -> list[CachedBlock]:
        found: list[CachedBlock] = []
        parent: Namespace | int = table.namespace
        for index in range((len(table.token_ids) - 1) // self.block_size):
            entry = self._index.find(self._digest(table, index), parent, table.tokens_of(index))
            if entry is None:
                break
            found.append(entry)
            parent = entry.serial
        return found

    def _link(self, table: BlockTable) -> None:
        """Enter the table's full, computed blocks that the index has not seen."""
        while table.parent is not None and table.num_linked < table.num_computed // self.block_size:
            index = table.num_linked
            tokens = table.tokens_of(index)
            entry = self._index.add(self._digest(table, index), table.parent, tokens, table.blocks[index])
            table.parent = None if entry is None else entry.serial
            table.num_linked += 1

    def _digest(self, table: BlockTable, index: int) -> bytes:
        digests = table.digests
        while len(digests) <= index:
            parent = digests[-1] if digests else table.namespace.digest()
            digests.append(self._index.digest(parent, table.tokens_of(len(digests))))
        return digests[index]

    def _take(self) -> int:
        block = self._pool.take()
        self._index.forget(block)
        return block

    def _copy(self, table: BlockTable, index: int) -> tuple[int, int]:
        source = table.blocks[index]
        target = self._take()
        table.blocks[index] = target
        self._pool.release(source)
        self._sources.add(source)
        self._used_slots += table.filled(index)
        return source, target

    def check_integrity(self, tables: abc.Iterable[BlockTable] | None = None) -> None:
        """Raise `IntegrityError` naming the fact unless every invariant holds.

        Call it between plans, after `settle`. With `tables`, these must be exactly the tables that hold
        blocks.
        """
        self._pool.check_integrity()
        self._index.check_integrity()
        if tables is not None:
            strays = self._tables.symmetric_difference(tables)
            require(not strays, f"{len(strays)} tables hold blocks for nobody, or are not known to the manager.")
        self._check_references()
        self._check_index()
        for table in self._tables:
            self._check_table(table)
        self._check_sharing()

    def _check_references(self) -> None:
        held = Counter(block for table in self._tables for block in table.blocks)
        for block, references in enumerate(self._pool.references):
            require(
                references == held[block],
                f"Block {block} counts {references} references but {held[block]} tables hold it.",
            )

    def _check_index(self) -> None:
        for block in range(self._pool.num_blocks):
            indexed = block in self._index
            cached = self._pool.is_cached(block)
            require(
                indexed or not cached,
                f"Block {block} is kept for its contents, which the prefix index does not know.",
            )
            require(
                not indexed or cached or self._pool.references[block] > 0,
                f"The prefix index offers block {block}, which is free.",
            )

    def _check_table(self, table: BlockTable) -> None:
        require(len(set(table.blocks)) == len(table.blocks), f"A table holds a block twice: {table.blocks}.")
        require(
            table.num_computed <= min(len(table.blocks) * self.block_size, len(table.token_ids)),
            f"A table with {len(table.blocks)} blocks for {len(table.token_ids)} tokens "
            f"has {table.num_computed} computed.",
        )
        digest = table.namespace.digest()
        for index, block in enumerate(table.blocks):
            tokens = table.tokens_of(index)
            digest = self._index.digest(digest, tokens)
            entry = self._index.of_block(block)
            if entry is not None:
                require(
                    table.filled(index) == self.block_size,
                    f"Block {block} is in the prefix index before it is full.",
                )
                require(
                    entry.tokens == tokens,
                    f"The prefix index has other tokens for block {block} than its holder.",
                )
                require(
                    entry.digest == digest,
                    f"Block {block} is in the prefix index under another prefix than its holder's.",
                )

    def _check_sharing(self) -> None:
        first_holder: dict[int, tuple[BlockTable, int]] = {}
        used_slots = 0
        for table in self._tables:
            for index, block in enumerate(table.blocks):
                if block not in first_holder:
                    first_holder[block] = table, index
                    used_slots += table.filled(index)
                    continue
                other, other_index = first_holder[block]
                filled = table.filled(index)
                require(
                    index == other_index
                    and filled == other.filled(index)
                    and table.tokens_of(index)[:filled] == other.tokens_of(index)[:filled],
                    f"Block {block} was written while shared: its holders disagree about what it contains.",
                )
        require(
            used_slots == self._used_slots,
            f"{self._used_slots} slots are counted as used, but {used_slots} are.",
        )
