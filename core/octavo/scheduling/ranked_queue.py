"""Sequences in order of rank."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import abc
from operator import attrgetter

from octavo.scheduling.request import Sequence

_rank = attrgetter("rank")


class RankedQueue:
    """A list kept sorted by rank; ranks are unique and do not change while a sequence is in it.

    Adding and removing search in O(log n) and move pointers, which for thousands of them takes a microsecond;
    removal from the middle is exact, so a queue holds no corpses of aborted requests as a heap would.
    """

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        insort(self.items, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Raises `ValueError` when the sequence is not in the queue."""
        index = bisect_left(self.items, sequence.rank, key=_rank)
        if index == len(self.items) or self.items[index] is not sequence:
            raise ValueError(f"{sequence!r} is not in the queue.")
        del self.items[index]

    def is_sorted(self) -> bool:
        return all(first.rank < second.rank for first, second in zip(self.items, self.items[1:], strict=False))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> abc.Iterator[Sequence]:
        return iter(self.items)
