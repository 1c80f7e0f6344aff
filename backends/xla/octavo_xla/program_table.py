"""The programs that a device holds, and how many it may: compiled for a host, each takes hundreds of memory mappings.

Linux gives a process 65,530 of them (`vm.max_map_count`), and one that wants more dies where it stands. A step of a
model with 30 layers takes about 500, an operation 60.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakSet

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MAPPINGS = Path("/proc/self/maps")
_MOST_MAPPINGS = Path("/proc/sys/vm/max_map_count")

_log = logging.getLogger(__name__)


class ProgramRoom:
    """What all tables of one device share: the order of their uses, and the process they are in."""

    def __init__(self) -> None:
        self._tables: WeakSet[ProgramTable[Any, Any]] = WeakSet()
        self._uses = count()

    def join(self, table: ProgramTable[Any, Any]) -> None:
        self._tables.add(table)

    def next_use(self) -> int:
        return next(self._uses)

    def make(self) -> None:
        """Where half of the mappings are taken, let the half of all programs go that was used longest ago."""
        if not crowded():
            return
        entries = [(used, table, key) for table in self._tables for key, used in table.uses()]
        entries.sort(key=itemgetter(0))
        leaving = entries[: len(entries) // 2]
        for _, table, key in leaving:
            table.forget(key)
        _log.info("%d of %d programs were let go: half of the memory mappings are taken.", len(leaving), len(entries))


class ProgramTable(Generic[K, V]):
    """Programs by what they were compiled for, each with the number of its last use."""

    def __init__(self, room: ProgramRoom) -> None:
        self._room = room
        self._entries: dict[K, tuple[int, V]] = {}
        room.join(self)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else self._use(key, entry[1])

    def keep(self, key: K, program: V) -> V:
        self._use(key, program)
        self._room.make()
        return program

    def uses(self) -> list[tuple[K, int]]:
        return [(key, used) for key, (used, _) in self._entries.items()]

    def forget(self, key: K) -> None:
        del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()

    def _use(self, key: K, program: V) -> V:
        self._entries[key] = (self._room.next_use(), program)
        return program


def crowded() -> bool:
    """Whether this process has taken half of the memory mappings that it may have; False where nobody tells."""
    try:
        most = int(_MOST_MAPPINGS.read_text())
        with _MAPPINGS.open("rb") as lines:
            return sum(1 for _ in lines) > most // 2
    except (OSError, ValueError):
        return False
