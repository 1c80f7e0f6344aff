from __future__ import annotations

import pytest

from octavo.cache import BlockManager, IntegrityError, Namespace, PrefixIndex, block_digest

ROOT = Namespace("", -1)


def _same_digest(parent: bytes, tokens: object) -> bytes:
    return b"all collide"


def test_a_block_is_found_by_its_tokens_and_its_parent() -> None:
    index = PrefixIndex()
    first_digest = index.digest(ROOT.digest(), (1, 2))
    first = index.add(first_digest, ROOT, (1, 2), block=5)
    assert first is not None
    second_digest = index.digest(first_digest, (3, 4))
    second = index.add(second_digest, first.serial, (3, 4), block=6)
    assert index.find(first_digest, ROOT, (1, 2)) is first
    assert index.find(second_digest, first.serial, (3, 4)) is second
    assert index.find(second_digest, ROOT, (3, 4)) is None


def test_the_digest_covers_parent_tokens_salt_and_adapter() -> None:
    roots = {Namespace(salt, adapter).digest() for salt in ("", "a", "1:") for adapter in (-1, 0, 1)}
    assert len(roots) == 9
    root = ROOT.digest()
    assert len({block_digest(p, t) for p in roots for t in ((1, 2), (2, 1), (1, 2, 0))}) == 27
    assert block_digest(root, (1, 2)) == block_digest(root, [1, 2])


def test_a_salt_of_lone_surrogates_is_a_salt_like_any_other() -> None:
    assert Namespace("\ud800", 0).digest() != Namespace("\ud801", 0).digest()


def test_a_collision_is_a_miss_and_does_not_displace_the_first() -> None:
    index = PrefixIndex(_same_digest)
    digest = index.digest(b"", ())
    first = index.add(digest, ROOT, (1, 2), block=1)
    assert index.add(digest, ROOT, (8, 9), block=2) is None
    assert index.find(digest, ROOT, (8, 9)) is None
    assert index.find(digest, Namespace("other tenant", -1), (1, 2)) is None
    assert index.find(digest, ROOT, (1, 2)) is first
    assert len(index) == 1


def test_equal_blocks_are_entered_once() -> None:
    index = PrefixIndex()
    digest = index.digest(ROOT.digest(), (1, 2))
    first = index.add(digest, ROOT, (1, 2), block=1)
    assert index.add(digest, ROOT, (1, 2), block=2) is first
    assert 2 not in index


def test_the_chain_ends_where_the_parent_was_evicted() -> None:
    index = PrefixIndex()
    digest = index.digest(ROOT.digest(), (1, 2))
    first = index.add(digest, ROOT, (1, 2), block=1)
    assert first is not None
    child = index.digest(digest, (3, 4))
    index.add(child, first.serial, (3, 4), block=2)
    index.forget(1)
    assert index.add(index.digest(digest, (5, 6)), first.serial, (5, 6), block=3) is None
    again = index.add(digest, ROOT, (1, 2), block=4)
    assert again is not None
    assert index.find(child, again.serial, (3, 4)) is None  # its parent is another entry than the one it hung from
    index.check_integrity()


@pytest.mark.parametrize("tenant", [("", 0), ("b", -1)])
def test_tenants_and_adapters_share_nothing_even_when_every_digest_collides(tenant: tuple[str, int]) -> None:
    blocks = BlockManager(16, 2, index=PrefixIndex(_same_digest))
    table = blocks.table([1, 2, 3])
    blocks.begin(table)
    blocks.allocate(table, 3)
    blocks.computed(table, 3)
    assert blocks.begin(blocks.table([1, 2, 3], *tenant)) == 0
    assert blocks.begin(blocks.table([1, 7, 3])) == 0
    assert blocks.begin(blocks.table([1, 2, 3])) == 2


def test_the_check_finds_an_entry_that_another_block_replaced() -> None:
    index = PrefixIndex()
    digest = index.digest(ROOT.digest(), (1, 2))
    entry = index.add(digest, ROOT, (1, 2), block=1)
    assert entry is not None
    index._by_block[2] = entry
    with pytest.raises(IntegrityError, match="digests than blocks"):
        index.check_integrity()
