"""What the page of one report shows: its head, then level by level and subject by subject the cases."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo_conformance.case import Level
from octavo_conformance.report.document import Backend, Report, Result
from octavo_conformance.report.score import Counts, Spot, by_level, by_spot, count, spot
from octavo_conformance.site.cells import Cell, Figure, anchor, case_anchor, cell_of, figure_of
from octavo_conformance.site.text import heading, measured
from octavo_conformance.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Line:
    """One case. variant: what its id adds to its group's. command: runs it alone."""

    result: Result
    anchor: str
    variant: str
    figure: Figure | None
    command: str


@dataclass(frozen=True, slots=True)
class Group:
    """The cases of one subject in one dtype. title: the dtype, or "" where there is none. command: runs all of them.

    Reasons that several cases share are said once: unsupported and unavailable cases, by reason.
    """

    title: str
    anchor: str
    cell: Cell
    seconds: float
    command: str
    failed: Sequence[Line]
    expected: Sequence[Line]
    passed: Sequence[Line]
    others: Mapping[tuple[Verdict, str], Sequence[Line]]


@dataclass(frozen=True, slots=True)
class Subject:
    """The cases of one subject, one group a dtype."""

    name: str
    counts: Counts
    groups: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Figures:
    """What performance cases measured: a row of texts for each, one a column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Section:
    """A level."""

    level: Level
    counts: Counts
    seconds: float
    figures: Figures | None
    subjects: Sequence[Subject]


@dataclass(frozen=True, slots=True)
class Page:
    """The page of a report. failed: all of the cases that failed, for the list at its top."""

    report: Report
    label: str
    counts: Counts
    seconds: float
    failed: Sequence[Line]
    sections: Sequence[Section]
    command: str


def page_of(report: Report, label: str) -> Page:
    """The page of a report."""
    spots = by_spot(report)
    return Page(
        report=report,
        label=label,
        counts=count(report.results),
        seconds=sum(result.seconds for result in report.results),
        failed=[_line(report.backend, one) for one in report.results if one.verdict is Verdict.FAILED],
        sections=[_section(report, level, counts, spots) for level, counts in by_level(report).items()],
        command=_command(report.backend, report.selection.pattern, report),
    )


def _section(report: Report, level: Level, counts: Counts, spots: Mapping[Spot, tuple[Result, ...]]) -> Section:
    subjects: defaultdict[str, list[Group]] = defaultdict(list)
    for where, results in spots.items():
        if where.level is level:
            subjects[where.subject].append(_group(report.backend, where, results))
    cases = [result for where, found in spots.items() if where.level is level for result in found]
    return Section(
        level=level,
        counts=counts,
        seconds=sum(case.seconds for case in cases),
        figures=_figures(cases),
        subjects=[
            Subject(name, count(case for case in cases if spot(case.case).subject == name), groups)
            for name, groups in subjects.items()
        ],
    )


def _group(backend: Backend, where: Spot, results: Sequence[Result]) -> Group:
    others: defaultdict[tuple[Verdict, str], list[Line]] = defaultdict(list)
    for result in results:
        if result.verdict in (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE):
            others[result.verdict, result.reason].append(_line(backend, result))

    def those(verdict: Verdict) -> list[Line]:
        return [_line(backend, result) for result in results if result.verdict is verdict]

    return Group(
        title="" if where.dtype is None else where.dtype.value,
        anchor=anchor(where),
        cell=cell_of(results),
        seconds=sum(result.seconds for result in results),
        command=_command(backend, f"{anchor(where)}/*" if len(results) > 1 else results[0].case),
        failed=those(Verdict.FAILED),
        expected=those(Verdict.EXPECTED_FAILURE),
        passed=those(Verdict.PASSED),
        others=dict(others),
    )


def _line(backend: Backend, result: Result) -> Line:
    inner = result.case.removeprefix(anchor(spot(result.case))).lstrip("/")
    return Line(
        result=result,
        anchor=case_anchor(result.case),
        variant=inner or result.case,
        figure=figure_of(result),
        command=_command(backend, result.case),
    )


def _figures(results: Sequence[Result]) -> Figures | None:
    names = dict.fromkeys(name for result in results for name in result.figures)
    if not names:
        return None
    rows = [
        (
            result.case.partition("/")[2],
            [measured(name, float(result.figures[name])) if name in result.figures else "" for name in names],
        )
        for result in results
        if result.figures
    ]
    return Figures([heading(name) for name in names], rows)


def _command(backend: Backend, pattern: str, report: Report | None = None) -> str:
    """The command line that runs the cases of a pattern; with a report, those of its selection."""
    words = ["octavo", "conformance", "run", "--backend", backend.name]
    if backend.requested_kernel != "auto":
        words += ["--kernel", backend.requested_kernel]
    for name, value in backend.options.items():
        words += ["--option", f"{name}={value}"]
    if report is not None:
        if not report.selection.every_level:
            words += [word for level in report.selection.levels for word in ("--level", level.value)]
        words += ["--quick"] if report.selection.quick else []
    if pattern:
        words += ["--case", pattern]
    return shlex.join(words)
