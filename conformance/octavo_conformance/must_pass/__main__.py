"""`python -m octavo_conformance.must_pass`: write the lists of the suite at hand."""

from __future__ import annotations

from pathlib import Path

from octavo_conformance import SUITE_VERSION
from octavo_conformance.case import Case, Level
from octavo_conformance.suite import cases


def text(level: Level, found: tuple[Case, ...]) -> str:
    """The file of one level."""
    lines = [f"# Suite {SUITE_VERSION}, level {level.value}. Written by python -m octavo_conformance.must_pass"]
    lines += [case.id + (" quick" if case.quick else "") for case in found if case.level is level]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write one file a level into the folder of the version."""
    folder = Path(__file__).parent / SUITE_VERSION
    folder.mkdir(exist_ok=True)
    for level in Level:
        (folder / f"{level.value}.txt").write_text(text(level, cases()))


if __name__ == "__main__":
    main()
