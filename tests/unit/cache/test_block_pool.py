from __future__ import annotations

import pytest

from octavo.cache import NULL_BLOCK, BlockPool, IntegrityError


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(5)
    assert {pool.take() for _ in range(4)} == {1, 2, 3, 4}
    assert pool.available == 0
    with pytest.raises(IndexError, match="All 4 KV blocks are in use"):
        pool.take()
    assert NULL_BLOCK == 0


def test_a_pool_with_nothing_to_hand_out_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        BlockPool(1)


def test_a_shared_block_is_released_by_its_last_holder() -> None:
    pool = BlockPool(3)
    block = pool.take()
    assert not pool.share(block)
    assert not pool.release(block)
    assert pool.release(block)
    pool.recycle(block, cached=False)
    assert pool.num_free == 2
    pool.check_integrity()


def test_free_blocks_go_before_cached_ones_and_the_longest_unused_is_evicted_first() -> None:
    pool = BlockPool(5)
    blocks = [pool.take() for _ in range(4)]
    for block in blocks[:3]:
        pool.release(block)
        pool.recycle(block, cached=True)
    pool.release(blocks[3])
    pool.recycle(blocks[3], cached=False)
    pool.share(blocks[0])  # a hit: used again, so it is now the last to go
    pool.release(blocks[0])
    pool.recycle(blocks[0], cached=True)
    assert [pool.take() for _ in range(4)] == [blocks[3], blocks[1], blocks[2], blocks[0]]


def test_a_hit_revives_a_cached_block() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.release(block)
    pool.recycle(block, cached=True)
    assert pool.available == 1
    assert pool.share(block)
    assert pool.available == 0
    pool.check_integrity()


def test_the_check_finds_a_lost_and_a_doubled_block() -> None:
    pool = BlockPool(3)
    block = pool.take()
    pool.release(block)
    with pytest.raises(IntegrityError, match=f"Block {block} must be exactly one of"):
        pool.check_integrity()
    pool.recycle(block, cached=False)
    pool.recycle(block, cached=False)
    with pytest.raises(IntegrityError, match="twice"):
        pool.check_integrity()
