"""What a vendor says of its own backend: cases that fail for now, and tolerances it needs. Each has a reason.

A file in TOML, `octavo-conformance.toml` by habit::

    [[expected-failure]]
    case = "ops/paged_attention/float16/*sinks*"
    reason = "sinks are computed by the reference operation, which overflows in float16: issue 12"

    [[tolerance]]
    op = "linear"
    dtype = "float32"
    nmse = 1e-10
    reason = "the matrix unit multiplies in three passes of bfloat16"

An expected failure is strict: a case that passes although its failure was expected has failed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.backend import DType
from octavo_conformance.case import matches
from octavo_conformance.tolerances import Override, Tolerances
from octavo_conformance.verdict import Outcome, Verdict


class ExpectationsError(ValueError):
    """A file of expectations that cannot be used; the message says which entry and what it may be."""


@dataclass(frozen=True, slots=True)
class ExpectedFailure:
    """Cases that fail for now, by a pattern as `case.matches` takes it, and why."""

    case: str
    reason: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """What one backend's vendor expects."""

    failures: tuple[ExpectedFailure, ...] = ()
    overrides: tuple[Override, ...] = ()

    def judge(self, outcome: Outcome) -> Outcome:
        """The outcome in the light of what was expected of its case."""
        reason = next((one.reason for one in self.failures if matches(outcome.case, one.case)), None)
        if reason is None:
            return outcome
        if outcome.verdict is Verdict.FAILED:
            return replace(outcome, verdict=Verdict.EXPECTED_FAILURE, reason=f"{reason} | {outcome.reason}")
        if outcome.verdict is Verdict.PASSED:
            return replace(
                outcome,
                verdict=Verdict.FAILED,
                reason=f"It passed, and was expected to fail ({reason}): take it out of the expected failures.",
            )
        return outcome


def read_expectations(path: Path, known: Sequence[str]) -> Expectations:
    """Read a file of expectations; `known` are the ids of the suite.

    Raises ExpectationsError for a file that is no such TOML, an entry without its reason, a pattern that matches no
    case, or an override that `Tolerances` refuses.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExpectationsError(f"{path} cannot be read: {error}") from None
    unknown = set(document) - {"expected-failure", "tolerance"}
    if unknown:
        raise ExpectationsError(
            f"{path} has {', '.join(sorted(unknown))}; it may have [[expected-failure]] and [[tolerance]]."
        )
    failures = tuple(
        ExpectedFailure(str(entry["case"]), str(entry["reason"]))
        for entry in _entries(path, document, "expected-failure", {"case": str, "reason": str})
    )
    for failure in failures:
        if not any(matches(case, failure.case) for case in known):
            raise ExpectationsError(f"{path}: the expected failure {failure.case!r} matches no case of the suite.")
    fields = {"op": str, "dtype": str, "nmse": float, "reason": str}
    overrides = tuple(_override(path, entry) for entry in _entries(path, document, "tolerance", fields))
    try:
        Tolerances(overrides)
    except ValueError as error:
        raise ExpectationsError(f"{path}: {error}") from None
    return Expectations(failures, overrides)


def _override(path: Path, entry: Mapping[str, Any]) -> Override:
    try:
        dtype = DType(entry["dtype"])
    except ValueError:
        names = ", ".join(dtype.value for dtype in DType)
        raise ExpectationsError(f"{path}: {entry['dtype']!r} is no dtype; these are: {names}.") from None
    return Override(entry["op"], dtype, entry["nmse"], entry["reason"])


def _entries(path: Path, document: Mapping[str, Any], name: str, fields: Mapping[str, type]) -> list[Mapping[str, Any]]:
    """The entries of one kind, each with exactly these fields, none of them empty."""
    entries = document.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ExpectationsError(f"{path}: {name} is written as [[{name}]], once for each.")
    for entry in entries:
        for field, kind in fields.items():
            value = entry.get(field)
            if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
                what = "a number such as 1e-6" if kind is float else "a text"
                raise ExpectationsError(f"{path}: an entry of [[{name}]] needs {what} as {field}, and has {value!r}.")
        extra = set(entry) - set(fields)
        if extra:
            raise ExpectationsError(
                f"{path}: an entry of [[{name}]] has {', '.join(sorted(extra))}; it may have {', '.join(fields)}."
            )
    return entries
