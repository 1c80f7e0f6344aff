"""The suite: every case there is, in a fixed order. A backend has no part in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module

from octavo_conformance.case import Case, Level, matches


@cache
def cases() -> tuple[Case, ...]:
    """All cases, level by level. Raises ValueError where two have one id."""
    found: dict[str, Case] = {}
    for level in Level:
        for case in import_module(f"octavo_conformance.cases.{level.value}").cases():
            if case.id in found:
                raise ValueError(f"Two cases have the id {case.id!r}.")
            found[case.id] = case
            if case.level is not level:
                raise ValueError(f"{case.id!r} is a case of another level than {level.value}.")
    return tuple(found.values())


def select(levels: Iterable[Level] = (), pattern: str = "", quick: bool = False) -> Sequence[Case]:
    """The cases of these levels (all without any) whose id matches the pattern; see `case.matches`.

    quick: only those of the quick set.
    """
    wanted = set(levels) or set(Level)
    return [
        case for case in cases() if case.level in wanted and (case.quick or not quick) and matches(case.id, pattern)
    ]
