"""A cell of the matrix: what became of the cases of one subject in one dtype, at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from octavo_conformance.report.document import Result
from octavo_conformance.report.score import Spot, worst
from octavo_conformance.site.marks import ORDER, mark
from octavo_conformance.site.text import error, many, measured, tolerance
from octavo_conformance.verdict import Verdict

_SHOWN_HEADROOM = 8.0  # powers of ten under the tolerance that the bar of an error figure spans


@dataclass(frozen=True, slots=True)
class Figure:
    """An error beside its tolerance: "1.2e-14 ≤ 1e-11". share: how full its bar is, from 0 to 1."""

    text: str
    beyond: bool
    share: float


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell says. verdict: the one that a reader looks for first. note: the other verdicts, "" without any.

    figure: the worst error, None where nothing is compared. rate: what a performance case measured, or "".
    """

    verdict: Verdict
    text: str
    note: str
    figure: Figure | None
    rate: str


def cell_of(results: Sequence[Result]) -> Cell:
    """The cell of one or more results."""
    counted = {verdict: sum(result.verdict is verdict for result in results) for verdict in ORDER}
    present = [verdict for verdict in ORDER if counted[verdict]]
    first, *others = present
    if not others and first in (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE):
        text = mark(first).word
    elif others and first is not Verdict.PASSED:
        text = f"{counted[first]} of {len(results)} {mark(first).kind}"
    else:
        text = f"{counted[first]} {mark(first).words if counted[first] > 1 else mark(first).word}"
    notes = [
        many(counted[verdict], mark(verdict).word, mark(verdict).words)
        for verdict in others
        if verdict is not Verdict.PASSED  # it is the rest
    ]
    compared = worst(result for result in results if result.verdict is first)
    return Cell(first, text, ", ".join(notes), figure_of(compared), _rate(results))


def figure_of(result: Result | None) -> Figure | None:
    """The error figure of a result, None where it compared nothing."""
    if result is None or result.error is None or result.tolerance is None or result.share is None:
        return None
    beyond = not result.share <= 1.0
    text = f"{error(result.error)} {'>' if beyond else '≤'} {tolerance(result.tolerance)}"
    if result.share <= 0.0:
        return Figure(text, beyond, 0.0)
    powers = math.log10(result.share) if math.isfinite(result.share) else 0.0
    return Figure(text, beyond, min(1.0, max(0.0, 1.0 + powers / _SHOWN_HEADROOM)))


def anchor(spot: Spot) -> str:
    """The id of the element that has a spot's cases, on the page of a report."""
    parts = (spot.level.value, spot.subject, *([] if spot.dtype is None else [spot.dtype.value]))
    return "/".join(parts)


def case_anchor(case: str) -> str:
    """The id of the element of one case."""
    return f"case:{case}"


def target(spot: Spot, results: Sequence[Result]) -> str:
    """Where a cell leads: the first case that failed, or all of the spot."""
    for result in results:
        if result.verdict is Verdict.FAILED:
            return case_anchor(result.case)
    return anchor(spot)


def _rate(results: Sequence[Result]) -> str:
    """The largest bandwidth that was measured."""
    found = [float(result.figures["bytes_per_second"]) for result in results if "bytes_per_second" in result.figures]
    finite = [rate for rate in found if math.isfinite(rate)]
    return measured("bytes_per_second", max(finite)) if finite else ""
