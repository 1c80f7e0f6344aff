"""The report of a run: what it holds, its file, what it adds up to, and how two of them differ."""

from __future__ import annotations

from octavo_conformance.report.assemble import make_report
from octavo_conformance.report.compare import Comparison, compare
from octavo_conformance.report.document import Report, Result, Selection
from octavo_conformance.report.errors import ReportError
from octavo_conformance.report.files import read_report, write_report
from octavo_conformance.report.score import Counts, by_level, count

__all__ = [
    "Comparison",
    "Counts",
    "Report",
    "ReportError",
    "Result",
    "Selection",
    "by_level",
    "compare",
    "count",
    "make_report",
    "read_report",
    "write_report",
]
