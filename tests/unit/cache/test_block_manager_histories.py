"""Random histories of the block manager against a simulated KV store.

The store holds, for every slot, which token was written there after which prefix. After every step each
sequence must find its own tokens through its block table: a missing copy, a wrong prefix hit or a block in
two hands shows as a wrong content.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from octavo.cache import BlockManager, BlockTable

Tokens = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # two tokens only: prefixes repeat all the time


@dataclass
class Entry:
    tokens: list[int]
    table: BlockTable
    salt: str
    live: bool = field(default=True)

    def contents(self, stop: int) -> list[object]:
        """What the slots of positions 0 .. stop - 1 must hold."""
        chain: object = self.salt
        result: list[object] = []
        for position, token in enumerate(self.tokens[:stop]):
            chain = hash((chain, token))
            result.append((position, token, chain))
        return result


class BlockManagerHistories(RuleBasedStateMachine):
    entries: Bundle[Entry] = Bundle("entries")

    @initialize(num_blocks=st.integers(2, 14), block_size=st.integers(1, 4), caching=st.booleans())
    def make(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.blocks = BlockManager(num_blocks, block_size, caching)
        self.store: dict[int, object] = {}
        self.live: list[Entry] = []

    @rule(target=entries, tokens=Tokens, salt=st.sampled_from(["", "", "other"]), spare=st.integers(0, 2))
    def begin(self, tokens: list[int], salt: str, spare: int) -> Entry:
        tokens = tokens.copy()
        entry = Entry(tokens, self.blocks.table(tokens, salt), salt)
        before = self.blocks.stats()
        cached = self.blocks.begin(entry.table, spare)
        if cached is None:
            assert self.blocks.stats() == before
            entry.live = False
        else:
            assert cached < len(tokens)
            self.live.append(entry)
            room = self.blocks.available_blocks
            assert room >= self.blocks.missing_blocks(entry.table, len(tokens)) + spare
        return entry

    @rule(entry=entries, more=st.lists(st.integers(0, 1), max_size=3), part=st.integers(1, 6))
    def compute(self, entry: Entry, more: list[int], part: int) -> None:
        if not entry.live:
            return
        if entry.table.num_computed == len(entry.tokens):
            entry.tokens.extend(more)
        start = entry.table.num_computed
        end = min(start + part, len(entry.tokens))
        before = self.blocks.stats()
        copies = self.blocks.allocate(entry.table, end)
        self.blocks.settle()
        if copies is None:
            assert self.blocks.stats() == before
            return
        assert self.blocks.is_writable(entry.table, end)
        self.copy(copies)
        for position, content in enumerate(entry.contents(end)[start:], start):
            self.store[entry.table.slot(position)] = content
        self.blocks.computed(entry.table, end)

    def copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        size = self.blocks.block_size
        read = [self.store.get(source * size + i) for source, _ in copies for i in range(size)]
        slots = [target * size + i for _, target in copies for i in range(size)]
        self.store.update(zip(slots, read, strict=True))

    @rule(target=entries, entry=entries)
    def fork(self, entry: Entry) -> Entry:
        if not entry.live:
            return entry
        tokens = entry.tokens.copy()
        child = Entry(tokens, self.blocks.fork(entry.table, tokens), entry.salt)
        self.live.append(child)
        return child

    @rule(entry=consumes(entries))
    def free(self, entry: Entry) -> None:
        if entry.live:
            entry.live = False
            self.live.remove(entry)
        self.blocks.free(entry.table)

    @rule()
    def reset(self) -> None:
        self.blocks.reset_prefix_cache()

    @invariant()
    def nothing_is_lost_or_held_twice(self) -> None:
        self.blocks.check_integrity(entry.table for entry in self.live)

    @invariant()
    def everyone_finds_their_own_tokens(self) -> None:
        for entry in self.live:
            computed = entry.table.num_computed
            found = [self.store.get(entry.table.slot(position)) for position in range(computed)]
            assert found == entry.contents(computed)

    def teardown(self) -> None:
        if not hasattr(self, "blocks"):
            return
        for entry in self.live:
            self.blocks.free(entry.table)
        self.blocks.check_integrity([])
        assert self.blocks.stats().used_blocks == self.blocks.stats().used_slots == 0


BlockManagerHistories.TestCase.settings = settings(max_examples=800, stateful_step_count=30, deadline=None)
TestBlockManagerHistories = BlockManagerHistories.TestCase
