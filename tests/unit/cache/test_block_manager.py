from __future__ import annotations

import pytest

from octavo.cache import BlockManager, BlockTable, IntegrityError


def run(blocks: BlockManager, token_ids: list[int], salt: str = "") -> BlockTable:
    """A table with all of its tokens computed."""
    table = blocks.table(token_ids, salt)
    assert blocks.begin(table) is not None
    assert blocks.allocate(table, len(token_ids)) is not None
    blocks.settle()
    blocks.computed(table, len(token_ids))
    blocks.check_integrity()
    return table


def grow(blocks: BlockManager, table: BlockTable, tokens: list[int], token: int) -> tuple[tuple[int, int], ...]:
    """Compute one more token; returns the copies it took."""
    tokens.append(token)
    copies = blocks.allocate(table, len(tokens))
    assert copies is not None
    blocks.settle()
    assert blocks.is_writable(table, len(tokens))
    blocks.computed(table, len(tokens))
    blocks.check_integrity()
    return copies


def test_a_position_is_found_through_the_table() -> None:
    blocks = BlockManager(8, 4)
    table = run(blocks, list(range(10)))
    assert len(table) == 3
    assert [table.slot(p) for p in (0, 3, 4, 9)] == [
        table.blocks[0] * 4,
        table.blocks[0] * 4 + 3,
        table.blocks[1] * 4,
        table.blocks[2] * 4 + 1,
    ]
    with pytest.raises(IndexError):
        table.slot(12)


def test_what_does_not_fit_changes_nothing() -> None:
    blocks = BlockManager(5, 4)
    table = run(blocks, list(range(8)))
    before = blocks.stats()
    assert blocks.begin(blocks.table(list(range(17)))) is None  # 2 blocks shared, 3 missing, 2 there
    assert blocks.allocate(table, 17) is None
    assert blocks.stats() == before
    blocks.check_integrity()


def test_spare_blocks_are_left_over() -> None:
    blocks = BlockManager(5, 4)
    assert blocks.begin(blocks.table([1] * 8), spare=3) is None
    assert blocks.begin(blocks.table([1] * 8), spare=2) == 0


def test_a_computed_prefix_is_shared_and_one_token_is_left_to_compute() -> None:
    blocks = BlockManager(16, 4)
    first = run(blocks, list(range(12)))
    same = blocks.table(list(range(12)))
    assert blocks.begin(same) == 8
    assert same.blocks == first.blocks[:2]
    longer = blocks.table(list(range(13)))
    assert blocks.begin(longer) == 12
    assert longer.blocks == first.blocks
    blocks.check_integrity()


def test_allocated_blocks_are_not_shared_before_they_are_computed() -> None:
    blocks = BlockManager(16, 4)
    table = blocks.table(list(range(12)))
    blocks.begin(table)
    blocks.allocate(table, 12)
    assert blocks.begin(blocks.table(list(range(12)))) == 0
    blocks.computed(table, 7)
    assert blocks.begin(blocks.table(list(range(12)))) == 4


def test_nobody_reads_the_cache_who_does_not_want_to() -> None:
    blocks = BlockManager(16, 4)
    run(blocks, list(range(12)))
    queries = blocks.stats().prefix_queries
    assert blocks.begin(blocks.table(list(range(12))), read_prefix=False) == 0
    assert blocks.stats().prefix_queries == queries


def test_without_prefix_caching_freed_blocks_are_plain_free() -> None:
    blocks = BlockManager(8, 4, enable_prefix_caching=False)
    blocks.free(run(blocks, list(range(12))))
    assert blocks.stats().free_blocks == 7
    assert blocks.begin(blocks.table(list(range(12)))) == 0


def test_freed_blocks_are_found_again_until_they_are_evicted_tail_first() -> None:
    blocks = BlockManager(6, 4)
    blocks.free(run(blocks, list(range(16))))
    stats = blocks.stats()
    assert (stats.used_blocks, stats.cached_blocks, stats.free_blocks) == (0, 4, 1)
    other = run(blocks, [90] * 9)  # takes the free block and the two at the tail
    assert blocks.begin(blocks.table(list(range(9)))) is None
    blocks.free(other)
    assert blocks.begin(blocks.table(list(range(9)))) == 8
    blocks.check_integrity()


def test_a_hit_on_cached_blocks_does_not_count_them_as_room() -> None:
    blocks = BlockManager(5, 4)
    blocks.free(run(blocks, list(range(16))))
    assert blocks.begin(blocks.table([*range(16), 16])) is None  # 4 revived and 1 more: the pool has 4
    assert blocks.stats().cached_blocks == 4
    assert blocks.begin(blocks.table(list(range(16)))) == 12


def test_a_fork_shares_every_block_and_copies_only_what_it_writes() -> None:
    blocks = BlockManager(16, 4)
    tokens = list(range(6))
    parent = run(blocks, tokens)
    children_tokens = [tokens.copy() for _ in range(2)]
    children = [blocks.fork(parent, child) for child in children_tokens]
    assert blocks.stats().used_blocks == 2
    assert blocks.stats().used_slots == 6
    shared = parent.blocks[1]
    copies = grow(blocks, parent, tokens, 70)
    assert copies == ((shared, parent.blocks[1]),)
    assert parent.blocks[1] != shared
    assert len(grow(blocks, children[0], children_tokens[0], 71)) == 1
    assert grow(blocks, children[1], children_tokens[1], 72) == ()  # the last holder writes in place
    assert children[1].blocks[1] == shared
    assert parent.blocks[0] == children[0].blocks[0] == children[1].blocks[0]
    assert blocks.stats().used_slots == 4 + 3 * 3
    for table in (parent, *children):
        blocks.free(table)
        blocks.check_integrity([t for t in (parent, *children) if t.blocks])
    assert blocks.stats().used_slots == blocks.stats().used_blocks == 0


def test_a_fork_at_a_block_border_copies_nothing() -> None:
    blocks = BlockManager(16, 4)
    tokens = list(range(8))
    parent = run(blocks, tokens)
    child_tokens = tokens.copy()
    child = blocks.fork(parent, child_tokens)
    assert grow(blocks, parent, tokens, 1) == ()
    assert grow(blocks, child, child_tokens, 2) == ()


def test_a_block_that_was_copied_from_is_not_handed_out_in_the_same_plan() -> None:
    blocks = BlockManager(4, 4)
    tokens = [1, 2]
    parent = run(blocks, tokens)
    child = blocks.fork(parent, tokens.copy())
    source = parent.blocks[0]
    assert blocks.allocate(parent, 3) == ((source, parent.blocks[0]),)
    blocks.free(child)  # the plan preempts the last holder of the source
    late = blocks.table([7] * 8)
    assert blocks.begin(late, read_prefix=False) is None
    blocks.settle()
    assert blocks.begin(late, read_prefix=False) == 0
    blocks.check_integrity()


def test_two_that_computed_the_same_share_with_the_third() -> None:
    blocks = BlockManager(16, 4)
    tables = [blocks.table(list(range(9))) for _ in range(2)]
    for table in tables:
        blocks.begin(table)
        blocks.allocate(table, 9)
    for table in tables:
        blocks.computed(table, 9)
    third = blocks.table(list(range(9)))
    assert blocks.begin(third) == 8
    assert third.blocks == tables[0].blocks[:2]
    for table in (*tables, third):
        blocks.free(table)
    blocks.check_integrity([])
    assert blocks.stats().cached_blocks == 2  # the duplicates of the second table are plain free


def test_reset_forgets_every_prefix_and_tables_live_on() -> None:
    blocks = BlockManager(16, 4)
    tokens = list(range(6))
    table = run(blocks, tokens)
    blocks.free(run(blocks, [50] * 5))
    blocks.reset_prefix_cache()
    blocks.check_integrity()
    assert blocks.stats().cached_blocks == 0
    for token in (6, 7, 8):  # fills a block whose first half is from before the reset
        grow(blocks, table, tokens, token)
    assert blocks.begin(blocks.table(list(range(9)))) == 0


def test_stats_count_tokens_asked_and_found() -> None:
    blocks = BlockManager(16, 4)
    run(blocks, list(range(10)))
    run(blocks, [*range(8), 99])
    stats = blocks.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (19, 8)
    assert (stats.allocated_slots, stats.used_slots) == (16, 11)
    assert stats.waste == pytest.approx(5 / 16)
    assert stats.used_blocks + stats.cached_blocks + stats.free_blocks == stats.total_blocks == 15


def test_computed_tokens_need_blocks() -> None:
    blocks = BlockManager(16, 4)
    table = blocks.table(list(range(10)))
    blocks.begin(table)
    blocks.allocate(table, 4)
    with pytest.raises(IntegrityError, match="5 tokens were computed"):
        blocks.computed(table, 5)


def test_a_block_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockManager(4, 0)


class TestTheCheckFinds:
    def test_a_lost_reference(self) -> None:
        blocks = BlockManager(8, 4)
        table = run(blocks, list(range(6)))
        blocks._pool.share(table.blocks[0])
        with pytest.raises(IntegrityError, match="counts 2 references but 1 tables"):
            blocks.check_integrity()

    def test_a_block_twice_in_a_table(self) -> None:
        blocks = BlockManager(8, 4, enable_prefix_caching=False)
        table = run(blocks, list(range(6)))
        blocks._pool.share(table.blocks[0])
        table.blocks.append(table.blocks[0])
        with pytest.raises(IntegrityError, match="holds a block twice"):
            blocks.check_integrity()

    def test_tokens_that_changed_under_the_index(self) -> None:
        blocks = BlockManager(8, 4)
        tokens = list(range(6))
        run(blocks, tokens)
        tokens[2] = 99
        with pytest.raises(IntegrityError, match="other tokens"):
            blocks.check_integrity()

    def test_a_prefix_that_changed_under_the_index(self) -> None:
        blocks = BlockManager(8, 4)
        tokens = list(range(10))
        table = run(blocks, tokens)
        blocks._index.forget(table.blocks[0])
        tokens[2] = 99
        with pytest.raises(IntegrityError, match="another prefix"):
            blocks.check_integrity()

    def test_a_write_into_a_shared_block(self) -> None:
        blocks = BlockManager(8, 4)
        tokens = list(range(6))
        table = run(blocks, tokens)
        blocks.fork(table, tokens.copy())
        tokens.append(6)
        blocks.computed(table, 7)  # without allocate, and so without the copy
        with pytest.raises(IntegrityError, match="written while shared"):
            blocks.check_integrity()

    def test_a_table_that_nobody_owns(self) -> None:
        blocks = BlockManager(8, 4)
        run(blocks, list(range(6)))
        with pytest.raises(IntegrityError, match="1 tables hold blocks for nobody"):
            blocks.check_integrity([])

    def test_a_plan_that_was_not_settled(self) -> None:
        blocks = BlockManager(8, 4)
        tokens = [1, 2]
        table = run(blocks, tokens)
        child = blocks.fork(table, tokens.copy())
        blocks.allocate(table, 3)
        blocks.free(child)
        with pytest.raises(IntegrityError, match="settle"):
            blocks.check_integrity()
