"""Which computed block holds which prefix.

Hash-chained blocks as in vLLM's automatic prefix caching, with the lesson of its advisories: the hash finds
the candidate, the comparison decides.
"""

from __future__ import annotations

from array import array
from collections import abc
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from octavo.cache.integrity import require

Digest = abc.Callable[[bytes, abc.Sequence[int]], bytes]


class Namespace(NamedTuple):
    """Who may share: equal prompts under different salts (tenants) or adapters have nothing in common."""

    salt: str
    adapter: int

    def digest(self) -> bytes:
        # JSON can carry lone surrogates into a salt; a tenant's odd salt must not end a request.
        return blake2b(f"{self.adapter}:{self.salt}".encode("utf-8", "surrogatepass"), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """One full, computed block.

    `parent` is the serial of the block before it, or the namespace for the
    first of a chain.
    """

    serial: int
    block: int
    digest: bytes
    parent: Namespace | int
    tokens: tuple[int, ...]


def block_digest(parent: bytes, tokens: abc.Sequence[int]) -> bytes:
    """BLAKE2b-256 over the parent's digest and the block's tokens as 64-bit integers."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()


class PrefixIndex:
    """Finds the block that continues a chain with given tokens.

    It has at most one entry a block, so it is bounded by the pool.

    A hit is exact whatever the hash: the tokens must be equal, and the parent must be the very entry (by
    serial, never used twice) that was matched before, so by induction the whole prefix, its salt and its
    adapter are equal. Two chains with one digest are a miss for the one that came second.
    """

    def __init__(self, digest: Digest = block_digest) -> None:
        self.digest = digest
        self._by_digest: dict[bytes, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}
        self._serials: set[int] = set()
        self._next_serial = 0

    def __len__(self) -> int:
        return len(self._by_block)

    def __contains__(self, block: int) -> bool:
        return block in self._by_block

    def find(self, digest: bytes, parent: Namespace | int, tokens: tuple[int, ...]) -> CachedBlock | None:
        """The block holding `tokens` after `parent`, or None."""
        entry = self._by_digest.get(digest)
        if entry is None or entry.tokens != tokens or entry.parent != parent:
            return None
        return entry

    def add(self, digest: bytes, parent: Namespace | int, tokens: tuple[int, ...], block: int) -> CachedBlock | None:
        """Enter a computed block; returns its entry, or the equal entry of a block that was there first.

        None when the chain cannot go on: the digest belongs to other tokens, or the parent was evicted
        meanwhile.
        """
        if isinstance(parent, int) and parent not in self._serials:
            return None
        if digest in self._by_digest:
            return self.find(digest, parent, tokens)
        entry = CachedBlock(self._next_serial, block, digest, parent, tokens)
        self._next_serial += 1
        self._by_digest[digest] = entry
        self._by_block[block] = entry
        self._serials.add(entry.serial)
        return entry

    def of_block(self, block: int) -> CachedBlock | None:
        return self._by_block.get(block)

    def forget(self, block: int) -> None:
        """Drop what is known about a block; nothing happens when nothing is."""
        entry = self._by_block.pop(block, None)
        if entry is not None:
            del self._by_digest[entry.digest]
            self._serials.discard(entry.serial)

    def clear(self) -> None:
        self._by_digest.clear()
        self._by_block.clear()
        self._serials.clear()

    def check_integrity(self) -> None:
        """Raise `IntegrityError` unless the three views name the same entries."""
        require(
            len(self._by_digest) == len(self._by_block),
            "The prefix index has more digests than blocks or fewer.",
        )
        require(
            self._serials == {entry.serial for entry in self._by_block.values()},
            "A serial in the prefix index has no entry.",
        )
        for block, entry in self._by_block.items():
            require(entry.block == block, f"The prefix index knows block {entry.block} as block {block}.")
            require(
                self._by_digest.get(entry.digest) is entry,
                f"The digest of block {block} leads to another block.",
            )
