"""The digests of a report: a change that was made to the file by hand, or by a bad merge, shows."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import msgspec

from octavo_conformance.report.document import Report


def seal(report: Report) -> Report:
    """The report with its two digests, whatever they were before."""
    cases = cases_digest(result.case for result in report.results)
    sealed = msgspec.structs.replace(report, cases_digest=cases)
    return msgspec.structs.replace(sealed, results_digest=results_digest(sealed))


def cases_digest(ids: Iterable[str]) -> str:
    """SHA-256 over case ids, one a line, in their order."""
    return sha256("".join(f"{case}\n" for case in ids).encode()).hexdigest()


def results_digest(report: Report) -> str:
    """SHA-256 over everything else in the report, as compact JSON with sorted keys: spaces in the file do not count."""
    return sha256(canonical(msgspec.structs.replace(report, results_digest=""))).hexdigest()


def canonical(part: object) -> bytes:
    """One spelling of a part of a report, in compact JSON."""
    return msgspec.json.encode(part, order="deterministic")
