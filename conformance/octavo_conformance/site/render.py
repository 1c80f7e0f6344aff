"""From reports to files of HTML, which need no server, no script, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from octavo_conformance.case import Level
from octavo_conformance.report.document import Report
from octavo_conformance.report.errors import ReportError
from octavo_conformance.site import text
from octavo_conformance.site.index import index_of
from octavo_conformance.site.marks import WHAT, mark
from octavo_conformance.site.names import labels, pages
from octavo_conformance.site.page import page_of
from octavo_conformance.verdict import Verdict

INDEX = "index.html"


def render(reports: Sequence[Report], directory: Path) -> list[Path]:
    """Write the matrix of these reports, and a page for each; the paths of the files, the matrix first.

    Reports of one backend (its kernels, devices, days) get pages of their own, named after what tells them apart.

    Raises ReportError: no report, or a directory that cannot be written to.
    """
    if not reports:
        raise ReportError("There is no report to render; a site is made from one or more.")
    named = labels(reports)
    files = pages(named)
    environment = _environment()
    content = {INDEX: environment.get_template("index.html").render(index=index_of(reports, named, files))}
    for report, label, file in zip(reports, named, files, strict=True):
        content[file] = environment.get_template("report.html").render(page=page_of(report, label))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, markup in content.items():
            (directory / file).write_text(markup, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"The pages cannot be written to {directory}: {error.strerror or error}.") from None
    return [directory / file for file in content]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("octavo_conformance.site"),
        autoescape=True,  # whatever a report says is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=text.breakable,
        claim=text.claim,
        day=text.day,
        error=text.error,
        fragment=text.fragment,
        many=text.many,
        minute=text.minute,
        percent=text.percent,
        seconds=text.seconds,
        tolerance=text.tolerance,
    )
    environment.globals.update(Verdict=Verdict, Level=Level, WHAT=WHAT, mark=mark)
    return environment
