"""Reports as files: JSON with one result a line, so that a change of one case is one line of a diff.

A report is believed only whole: `read_report` holds its cases to the must-pass lists of its suite version, so that
neither a run nor an edit can leave one out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec

from octavo_conformance import SUITE_VERSION, must_pass
from octavo_conformance.case import matches
from octavo_conformance.report.digest import canonical, cases_digest, results_digest, seal
from octavo_conformance.report.document import SCHEMA, Report, Result, Selection
from octavo_conformance.report.errors import ReportError
from octavo_conformance.suite import cases
from octavo_conformance.tolerances import Override, Tolerances
from octavo_conformance.verdict import Verdict

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest file that is read; a whole report takes about 200 kB."""

ExpectedCases = Callable[[str, Selection], Sequence[str]]
"""The ids that a selection stands for in a version of the suite. Raises ValueError for a version it does not know."""


def listed_cases(suite_version: str, selection: Selection) -> Sequence[str]:
    """The ids of the must-pass lists in this package."""
    return must_pass.ids(selection.levels, selection.pattern, selection.quick, suite_version)


def write_report(report: Report, path: Path) -> None:
    """Write a report with its digests. A file that is there is replaced, in one move. Raises ReportError."""
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(_text(seal(report)))
        os.replace(unfinished, path)
    except OSError as error:
        raise ReportError(f"The report cannot be written to {path}: {error.strerror or error}.") from None


def read_report(path: Path, expected: ExpectedCases = listed_cases) -> Report:
    """Read a report and check that it is whole.

    Raises ReportError: not a report of this schema version, changed after it was written, or without exactly the cases
    that its selection stands for in its version of the suite.
    """
    report = _decode(path, _content(path))
    if report.results_digest != results_digest(report):
        raise ReportError(f"{path} was changed after it was written: its results_digest does not fit what it holds.")
    if report.date.utcoffset() != timedelta(0):
        raise ReportError(f"{path} has a date that is not in UTC.")
    _check_cases(path, report, expected)
    _check_overrides(path, report)
    _check_results(path, report)
    return report


# ---------------------------------------------------------------------------------------------------------- writing


def _text(report: Report) -> bytes:
    lines = [b'"%s":%s' % (name.encode(), _value(getattr(report, name))) for name in report.__struct_fields__]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def _value(value: object) -> bytes:
    """JSON on one line, or for a list one line an entry."""
    if isinstance(value, tuple) and value:
        return b"[\n" + b",\n".join(canonical(entry) for entry in value) + b"\n]"
    return canonical(value)


# ---------------------------------------------------------------------------------------------------------- reading


class _Schema(msgspec.Struct):
    """As much of a file as says how to read the rest."""

    schema: int


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(content) > LARGEST_FILE:
        raise ReportError(f"{path} is larger than {LARGEST_FILE >> 20} MiB; no report is.")
    return content


def _decode(path: Path, content: bytes) -> Report:
    try:
        schema = msgspec.json.decode(content, type=_Schema).schema
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is no conformance report: {error}.") from None
    except msgspec.DecodeError as error:
        raise ReportError(f"{path} is no JSON: {error}.") from None
    if schema != SCHEMA:
        raise ReportError(
            f"{path} has schema version {schema}; this octavo-conformance reads {SCHEMA}. "
            + ("Upgrade octavo-conformance." if schema > SCHEMA else "Run the suite again.")
        )
    try:
        return msgspec.json.decode(content, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is no report of schema version {SCHEMA}: {error}.") from None


def _check_cases(path: Path, report: Report, expected: ExpectedCases) -> None:
    found = [result.case for result in report.results]
    twice = [case for case, times in Counter(found).items() if times > 1]
    if twice:
        raise ReportError(f"{path} has more than one result of {_some(twice)}.")
    try:
        right = list(expected(report.suite_version, report.selection))
    except ValueError as error:
        raise ReportError(f"{path} cannot be checked. {error}") from None
    missing, unknown = set(right) - set(found), set(found) - set(right)
    if missing:
        raise ReportError(
            f"{path} lacks {_some([case for case in right if case in missing])}: suite {report.suite_version} asks for "
            f"{len(right)} cases here, and a report has a result for each."
        )
    if unknown:
        raise ReportError(
            f"{path} has a result of {_some([case for case in found if case in unknown])}, which suite "
            f"{report.suite_version} does not have in this selection."
        )
    if found != right:
        raise ReportError(f"{path} does not have its results in the order of the suite.")
    if report.cases_digest != cases_digest(right):
        raise ReportError(f"{path} was changed after it was written: its cases_digest does not fit its cases.")


def _check_overrides(path: Path, report: Report) -> None:
    """Refuse tolerances that no run of the suite could have had."""
    try:
        Tolerances([Override(one.op, one.dtype, one.nmse, one.reason) for one in report.overrides])
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from None
    reasons = [one.reason for one in report.overrides] + [one.reason for one in report.expected_failures]
    if not all(reason.strip() for reason in reasons):
        raise ReportError(f"{path} has an override or an expected failure without a reason.")


def _check_results(path: Path, report: Report) -> None:
    """Refuse a verdict that what stands beside it contradicts."""
    needs = {case.id: case.needs for case in cases()} if report.suite_version == SUITE_VERSION else {}
    for result in report.results:
        wrong = _contradiction(report, result)
        if not wrong and report.capabilities is not None and result.case in needs:
            missing = needs[result.case].missing(report.capabilities)
            if bool(missing) != (result.verdict is Verdict.UNSUPPORTED):
                wrong = f"though {missing}" if missing else "though the device claims what it needs"
        if wrong:
            raise ReportError(f"{path}: {result.case} is {result.verdict.value} {wrong}.")


def _contradiction(report: Report, result: Result) -> str:
    """What is wrong with one result, "" for nothing."""
    passed = result.verdict is Verdict.PASSED
    if (result.verdict is Verdict.UNAVAILABLE) and report.device is not None:
        return "though there was a device"
    if passed and report.device is None:
        return "without a device"
    if passed == bool(result.reason.strip()):
        return "with a reason why not" if passed else "without a reason"
    if result.verdict is Verdict.EXPECTED_FAILURE and not any(
        matches(result.case, one.case) for one in report.expected_failures
    ):
        return "and nobody expected it to fail"
    if result.error is None:
        return ""
    if result.tolerance is None or result.error < 0.0:
        return "with an error figure that cannot be"
    if passed and result.share is not None and not result.share <= 1.0:
        return f"with an error of {result.error:.3g}, where {result.tolerance:.3g} is allowed"
    return ""


def _some(cases: Sequence[str]) -> str:
    others = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f"case {cases[0]!r}{others}"
