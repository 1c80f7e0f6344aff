"""The sanitizing pool records every block whose contents nobody may read, and no other."""

from __future__ import annotations

from octavo.cache import NULL_BLOCK, BlockManager, SanitizedPool


def test_at_first_every_block_is_abandoned_the_null_block_too() -> None:
    pool = SanitizedPool(6)
    assert pool.take_abandoned(()) == [NULL_BLOCK, 1, 2, 3, 4, 5]
    assert pool.take_abandoned(()) == []


def test_blocks_come_in_a_shuffled_order_each_once() -> None:
    pool = SanitizedPool(33)
    taken = [pool.take() for _ in range(32)]
    assert sorted(taken) == list(range(1, 33))
    assert taken not in (sorted(taken), sorted(taken)[::-1])


def test_a_block_is_abandoned_when_it_is_taken_and_when_it_is_given_back() -> None:
    pool = _settled(SanitizedPool(5))
    block = pool.take()
    assert pool.take_abandoned(()) == [block]
    pool.release(block)
    pool.recycle(block, cached=False)
    assert pool.take_abandoned(()) == [block]


def test_a_block_kept_for_its_prefix_is_not_abandoned_until_it_is_evicted() -> None:
    pool = _settled(SanitizedPool(2))
    block = pool.take()
    pool.take_abandoned(())
    pool.release(block)
    pool.recycle(block, cached=True)
    assert pool.take_abandoned(()) == []
    pool.share(block)  # a hit
    assert pool.take_abandoned(()) == []
    pool.release(block)
    pool.recycle(block, cached=True)
    assert pool.take() == block  # an eviction
    assert pool.take_abandoned(()) == [block]


def test_a_prefix_that_is_forgotten_is_abandoned() -> None:
    pool = _settled(SanitizedPool(3))
    block = pool.take()
    pool.take_abandoned(())
    pool.release(block)
    pool.recycle(block, cached=True)
    pool.forget_cached()
    assert pool.take_abandoned(()) == [block]
    pool.check_integrity()


def test_what_a_copy_still_reads_is_abandoned_only_after_it() -> None:
    pool = _settled(SanitizedPool(8))
    blocks = BlockManager(8, 4, pool=pool)
    tokens = [list(range(6)), list(range(6))]
    first = blocks.table(tokens[0])
    blocks.begin(first)
    blocks.allocate(first, 6)
    blocks.settle()
    blocks.computed(first, 6)
    second = blocks.fork(first, tokens[1])
    pool.take_abandoned(())
    tokens[0].append(7)
    source = first.blocks[1]
    copies = blocks.allocate(first, 7)
    assert copies == ((source, first.blocks[1]),)
    blocks.free(second)  # the source's last holder, before the copy was made
    blocks.settle()
    assert pool.take_abandoned(copies) == [first.blocks[1]]
    assert pool.take_abandoned(()) == [source]
    blocks.check_integrity()


def _settled(pool: SanitizedPool) -> SanitizedPool:
    """A pool whose first filling is done."""
    pool.take_abandoned(())
    return pool
