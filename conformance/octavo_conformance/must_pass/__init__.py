"""The must-pass lists: the ids of each version of the suite, level by level, as files.

A file names one case a line, those of the quick set with " quick" behind it. The lists are what a report is held to, so
that neither a backend nor an edit can leave a case out; `python -m octavo_conformance.must_pass` writes those of the
version at hand, and a test fails where the suite and its lists differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from octavo_conformance import SUITE_VERSION
from octavo_conformance.case import Level, matches

_QUICK = " quick"


class UnknownSuiteError(ValueError):
    """This package has no must-pass lists of that version of the suite."""


def versions() -> list[str]:
    """The versions of the suite whose lists this package has."""
    folder = files("octavo_conformance.must_pass")
    return sorted(entry.name for entry in folder.iterdir() if entry.name[0].isdigit())


def ids(
    levels: Iterable[Level] = (), pattern: str = "", quick: bool = False, version: str = SUITE_VERSION
) -> list[str]:
    """The ids of a version that a selection stands for, in the order of the suite; see `suite.select`.

    Raises UnknownSuiteError.
    """
    wanted = set(levels) or set(Level)
    return [
        case
        for level in Level
        if level in wanted
        for case, is_quick in _read(version, level)
        if (is_quick or not quick) and matches(case, pattern)
    ]


@cache
def _read(version: str, level: Level) -> tuple[tuple[str, bool], ...]:
    if version not in versions():
        raise UnknownSuiteError(
            f"There are no must-pass lists of suite version {version!r} here; there are those of "
            f"{', '.join(versions())}. Another version of octavo-conformance may have them."
        )
    text = (files("octavo_conformance.must_pass") / version / f"{level.value}.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return tuple((line.removesuffix(_QUICK), line.endswith(_QUICK)) for line in lines)
