"""The conformance suite on the backend: the quick set, or as much of the whole one as there is time for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.part import Bench, Measurement
from benchmarks.gpu.scale import Scale
from octavo_conformance.case import Level
from octavo_conformance.report import Selection
from octavo_conformance.session import Session
from octavo_conformance.verdict import Outcome, Verdict

_RESERVE = 5.0
"""Seconds kept to stop the workers and write the report."""

_MOST_NAMED = 50
"""Failed cases that the record names; the report has them all."""

_EVERY = 25
"""Outcomes between two notes."""


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    yield Measurement(f"conformance/{argument}", partial(_conformance, argument == "quick"), limit=3600.0)


def _conformance(quick: bool, bench: Bench) -> dict[str, Any]:
    """Counts by level, what failed and why; the suite's own report beside the record if every case has run."""
    scale = bench.scale
    selection = Selection(tuple(Level), scale.conformance_cases, quick and not scale.dry)
    outcomes: list[Outcome] = []
    with Session.prepare(scale.backend, scale.kernel, selection=selection, jobs=scale.conformance_jobs) as session:
        cases = len(session.cases)
        for outcome in session.run():
            outcomes.append(outcome)
            if len(outcomes) % _EVERY == 0:
                bench.note(_figures(outcomes, cases, ""))
            if bench.seconds_left < _RESERVE:
                break
        report = bench.folder / f"conformance-{bench.argument}.json"
        written = session.write(report)
    return _figures(outcomes, cases, report.name if written else "")


def _figures(outcomes: list[Outcome], cases: int, report: str) -> dict[str, Any]:
    verdicts = Counter((_level(outcome), outcome.verdict.value) for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]
    return {
        "cases": cases,
        "run": len(outcomes),
        "complete": len(outcomes) == cases,
        "passed": sum(outcome.verdict is Verdict.PASSED for outcome in outcomes),
        "failed": len(failed),
        "unavailable": sum(outcome.verdict is Verdict.UNAVAILABLE for outcome in outcomes),
        "levels": {
            level.value: {
                verdict.value: verdicts[level.value, verdict.value]
                for verdict in Verdict
                if verdicts[level.value, verdict.value]
            }
            for level in Level
            if any(_level(outcome) == level.value for outcome in outcomes)
        },
        "failures": [{"case": outcome.case, "reason": _first_line(outcome.reason)} for outcome in failed[:_MOST_NAMED]],
        "performance": {
            outcome.case: dict(outcome.figures) for outcome in outcomes if _level(outcome) == Level.PERFORMANCE.value
        },
        "report": report,
    }


def _level(outcome: Outcome) -> str:
    return outcome.case.partition("/")[0]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
