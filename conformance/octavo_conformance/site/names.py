"""What reports are called beside each other: the shortest names that tell them apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from octavo_conformance.report.document import Report

_LONGEST = 60  # characters of a file's name

_PARTS: tuple[Callable[[Report], str], ...] = (
    lambda report: report.backend.kernel,
    lambda report: "" if report.device is None else report.device.name,
    lambda report: ", ".join(f"{name}={value}" for name, value in sorted(report.backend.options.items())),
    lambda report: report.backend.version,
    lambda report: "quick" if report.selection.quick else "",
    lambda report: f"{report.date:%Y-%m-%d}",
    lambda report: f"{report.date:%H:%M:%S}",
)
"""What distinguishes reports of one backend, in the order in which it is of interest."""


def labels(reports: Sequence[Report]) -> list[str]:
    """One name a report: its backend's, with as much behind it as another report of that backend makes necessary."""
    families: defaultdict[str, list[int]] = defaultdict(list)
    for index, report in enumerate(reports):
        families[report.backend.name].append(index)
    named = [report.backend.name for report in reports]
    for family in families.values():
        for part in _PARTS:
            values = {index: part(reports[index]) for index in family}
            if len({named[index] for index in family}) == len(family):
                break
            if len(set(values.values())) > 1:
                for index, value in values.items():
                    named[index] = f"{named[index]} {value}".rstrip()
    return _unique(named, lambda name, number: f"{name} ({number})")


def pages(labels: Sequence[str]) -> list[str]:
    """One file name a label: letters, digits and hyphens, all different, also where case does not count."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", label.lower())[:_LONGEST].strip("-") or "report" for label in labels]
    return [f"{slug}.html" for slug in _unique(slugs, lambda slug, number: f"{slug}-{number}", taken=("index",))]


def _unique(names: Sequence[str], numbered: Callable[[str, int], str], taken: Sequence[str] = ()) -> list[str]:
    """The names, with a number for each that was there before."""
    seen = {*taken}
    unique: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen:
            number += 1
            candidate = numbered(name, number)
        seen.add(candidate)
        unique.append(candidate)
    return unique
