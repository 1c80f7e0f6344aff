"""What the first page shows: the matrix, level by level, and a summary of each report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.backend import DType
from octavo_conformance.case import Level
from octavo_conformance.report.document import Report, Result
from octavo_conformance.report.score import Counts, Spot, by_level, by_spot, count
from octavo_conformance.site.cells import Cell, anchor, cell_of, target
from octavo_conformance.site.text import fragment
from octavo_conformance.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Summary:
    """One report on the first page. levels: counts of each level it has."""

    report: Report
    label: str
    page: str
    counts: Counts
    levels: Mapping[Level, Counts]


@dataclass(frozen=True, slots=True)
class Linked:
    """A cell and the address that it leads to."""

    cell: Cell
    href: str


@dataclass(frozen=True, slots=True)
class Failing:
    """A cell of the matrix in which cases failed. label: of its report; spot: level, subject and dtype."""

    label: str
    spot: str
    linked: Linked


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one report in one level's matrix: its dtypes, None for cases that are about none."""

    label: str
    page: str
    dtypes: Sequence[DType | None]


@dataclass(frozen=True, slots=True)
class Row:
    """A subject and its cells, one a column; None where a report has no such case."""

    subject: str
    cells: Sequence[Linked | None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The matrix of one level. by_dtype: some of its cases are about a dtype."""

    level: Level
    columns: Sequence[Columns]
    rows: Sequence[Row]

    @property
    def by_dtype(self) -> bool:
        return any(dtype is not None for columns in self.columns for dtype in columns.dtypes)


@dataclass(frozen=True, slots=True)
class Index:
    """The first page."""

    summaries: Sequence[Summary]
    levels: Sequence[Level]
    failing: Sequence[Failing]
    matrices: Sequence[Matrix]

    @property
    def suites(self) -> str:
        return ", ".join(sorted({summary.report.suite_version for summary in self.summaries}))


def index_of(reports: Sequence[Report], labels: Sequence[str], pages: Sequence[str]) -> Index:
    """The first page of these reports, whose names and files these are."""
    summaries = [
        Summary(report, label, page, count(report.results), by_level(report))
        for report, label, page in zip(reports, labels, pages, strict=True)
    ]
    levels = [level for level in Level if any(level in summary.levels for summary in summaries)]
    spots = [by_spot(report) for report in reports]
    return Index(
        summaries=summaries,
        levels=levels,
        failing=[
            Failing(summary.label, anchor(spot), _linked(summary.page, spot, results))
            for summary, found in zip(summaries, spots, strict=True)
            for spot, results in found.items()
            if any(result.verdict is Verdict.FAILED for result in results)
        ],
        matrices=[_matrix(level, summaries, spots) for level in levels],
    )


def _matrix(level: Level, summaries: Sequence[Summary], spots: Sequence[Mapping[Spot, tuple[Result, ...]]]) -> Matrix:
    columns = [
        Columns(summary.label, summary.page, _dtypes(level, found))
        for summary, found in zip(summaries, spots, strict=True)
        if level in summary.levels
    ]
    pairs = [(summary, found) for summary, found in zip(summaries, spots, strict=True) if level in summary.levels]
    subjects = dict.fromkeys(spot.subject for _, found in pairs for spot in found if spot.level is level)
    rows = [
        Row(
            subject,
            [
                _linked(summary.page, spot, found[spot]) if spot in found else None
                for (summary, found), column in zip(pairs, columns, strict=True)
                for spot in (Spot(level, subject, dtype) for dtype in column.dtypes)
            ],
        )
        for subject in subjects
    ]
    return Matrix(level, columns, rows)


def _dtypes(level: Level, found: Mapping[Spot, tuple[Result, ...]]) -> list[DType | None]:
    """The dtypes of a report's cases on one level, in the order of DType, and None at the end."""
    present = {spot.dtype for spot in found if spot.level is level}
    return [dtype for dtype in (*DType, None) if dtype in present]


def _linked(page: str, spot: Spot, results: Sequence[Result]) -> Linked:
    return Linked(cell_of(results), f"{page}#{fragment(target(spot, results))}")
