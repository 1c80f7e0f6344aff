"""Tuning tables: which parameters a kernel runs with, by architecture, dtype and shape.

A table is a TOML file that belongs to a vendor's package. Each kernel has an array of rows; the first one whose
conditions all hold gives its parameters, and what it leaves out is the kernel's default:

    [[rms_norm]]
    arch = ["sm_90", "sm_100"]    # any of these; leave it out for all
    dtype = ["bfloat16"]          # any of these
    max_hidden = 8192             # hidden <= 8192; min_hidden likewise
    num_warps = 8
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any


class TuningError(ValueError):
    """A tuning table that cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """What a kernel lets a table choose.

    kernel: its name. facts: what a row's conditions may ask about. defaults: every parameter with the value it has
    where no row matches.
    """

    kernel: str
    facts: tuple[str, ...]
    defaults: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table. conditions: fact -> values it may have, or (least, largest)."""

    archs: tuple[str, ...]
    one_of: Mapping[str, tuple[int | str, ...]]
    ranges: Mapping[str, tuple[int | None, int | None]]
    parameters: Mapping[str, int]

    def matches(self, arch: str, facts: Mapping[str, int | str]) -> bool:
        if self.archs and arch not in self.archs:
            return False
        if any(facts[name] not in values for name, values in self.one_of.items()):
            return False
        return all(_within(facts[name], limits) for name, limits in self.ranges.items())


@dataclass(frozen=True, slots=True)
class TuningTable:
    """Rows by kernel; empty by default, which gives every kernel its own defaults."""

    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(cls, path: Path | Traversable, tunables: Sequence[Tunable]) -> TuningTable:
        """Read a table for these kernels. Raises TuningError for a kernel, fact or parameter that there is not."""
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise TuningError(f"The tuning table {path} cannot be read: {error}") from None
        known = {tunable.kernel: tunable for tunable in tunables}
        rows = {}
        for kernel, entries in document.items():
            if kernel not in known:
                raise TuningError(f"{path}: there is no kernel {kernel!r}; there are {', '.join(sorted(known))}.")
            rows[kernel] = tuple(_row(known[kernel], entry, f"{path}: {kernel}") for entry in entries)
        return cls(MappingProxyType(rows))

    def choose(self, tunable: Tunable, arch: str, **facts: int | str) -> dict[str, int]:
        """Parameters for a launch: those of the first row that matches, over the kernel's defaults."""
        for row in self.rows.get(tunable.kernel, ()):
            if row.matches(arch, facts):
                return {**tunable.defaults, **row.parameters}
        return dict(tunable.defaults)


def _row(tunable: Tunable, entry: Mapping[str, Any], where: str) -> Row:
    one_of: dict[str, tuple[int | str, ...]] = {}
    ranges: dict[str, tuple[int | None, int | None]] = {}
    parameters: dict[str, int] = {}
    for key, value in entry.items():
        bound, _, fact = key.partition("_")
        if key == "arch":
            continue
        if key in tunable.defaults and isinstance(value, int):
            parameters[key] = value
        elif key in tunable.facts and isinstance(value, list):
            one_of[key] = tuple(value)
        elif fact in tunable.facts and bound in ("min", "max") and isinstance(value, int):
            least, largest = ranges.get(fact, (None, None))
            ranges[fact] = (value, largest) if bound == "min" else (least, value)
        else:
            raise TuningError(
                f"{where}: {key} = {value!r} means nothing. Parameters are integers: {', '.join(tunable.defaults)}. "
                f"Conditions are lists: arch, {', '.join(tunable.facts)}; or integers min_... and max_... of them."
            )
    return Row(tuple(entry.get("arch", ())), one_of, ranges, parameters)


def _within(value: int | str, limits: tuple[int | None, int | None]) -> bool:
    least, largest = limits
    assert isinstance(value, int)
    return (least is None or value >= least) and (largest is None or value <= largest)
