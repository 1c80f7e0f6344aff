"""What a report adds up to: counts by verdict, of all, by level, and by what the matrix of the site shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from octavo.backend import DType
from octavo_conformance.case import Level
from octavo_conformance.report.document import Report, Result
from octavo_conformance.verdict import Verdict

_DTYPES = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class Counts:
    """Cases by verdict."""

    passed: int = 0
    failed: int = 0
    unsupported: int = 0
    expected_failure: int = 0
    unavailable: int = 0

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.unsupported + self.expected_failure + self.unavailable

    def of(self, verdict: Verdict) -> int:
        """The cases of one verdict."""
        return int(getattr(self, verdict.name.lower()))

    @property
    def judged(self) -> int:
        """The denominator of the score: what a device does not claim stays in it, a device that is absent does not."""
        return self.total - self.unavailable

    @property
    def score(self) -> float:
        """Passed of judged, from 0 to 1; 0 where nothing was judged."""
        return self.passed / self.judged if self.judged else 0.0

    @property
    def ok(self) -> bool:
        """Nothing failed and something passed: a backend that supports nothing has not passed."""
        return self.failed == 0 and self.passed > 0


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in the matrix: a level, a subject of it (on level `ops` the operation), and a dtype or None."""

    level: Level
    subject: str
    dtype: DType | None


def spot(case: str) -> Spot:
    """Where a case stands in the matrix; its dtype is the part of its id behind the subject, where that is one."""
    level, subject, *variant = case.split("/")
    return Spot(Level(level), subject, _DTYPES.get(variant[0]) if variant else None)


def count(results: Iterable[Result]) -> Counts:
    """Counts over some results."""
    found = dict.fromkeys(Verdict, 0)
    for result in results:
        found[result.verdict] += 1
    return Counts(
        passed=found[Verdict.PASSED],
        failed=found[Verdict.FAILED],
        unsupported=found[Verdict.UNSUPPORTED],
        expected_failure=found[Verdict.EXPECTED_FAILURE],
        unavailable=found[Verdict.UNAVAILABLE],
    )


def by_level(report: Report) -> Mapping[Level, Counts]:
    """Counts of each level that the report has, in the order of the levels."""
    grouped: defaultdict[Level, list[Result]] = defaultdict(list)
    for result in report.results:
        grouped[spot(result.case).level].append(result)
    return {level: count(grouped[level]) for level in Level if level in grouped}


def by_spot(report: Report) -> Mapping[Spot, tuple[Result, ...]]:
    """The results of each place in the matrix, in the order of the suite."""
    grouped: defaultdict[Spot, list[Result]] = defaultdict(list)
    for result in report.results:
        grouped[spot(result.case)].append(result)
    return {where: tuple(results) for where, results in grouped.items()}


def worst(results: Iterable[Result]) -> Result | None:
    """The result whose error came closest to its tolerance, or went furthest beyond it; None where none compares."""
    return max((one for one in results if one.share is not None), key=lambda one: one.share or 0.0, default=None)
