"""`octavo conformance`: run the suite, compare two reports, render reports as pages, list the cases.

Exit codes: 0 every case passed, is unsupported, or failed as expected; 1 a case failed, or none passed; 2 wrong usage,
or a file that was refused; 3 the backend has no device here.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from octavo_conformance.case import Level

FAILED, UNAVAILABLE, TERMINATED = 1, 3, 143

_FILE = click.Path(path_type=Path, dir_okay=False)
_LEVELS = click.Choice([level.value for level in Level])
_Command = TypeVar("_Command", bound=Callable[..., None])


def _selection(command: _Command) -> _Command:
    """The options that choose cases, the same for every command that takes a selection."""
    quick = click.option("--quick", is_flag=True, help="Only the quick set, a few minutes.")
    case = click.option(
        "--case",
        "pattern",
        default="",
        metavar="PATTERN",
        help='Only cases whose id matches: * is any text, a space is "or".',
    )
    level = click.option("--level", "levels", multiple=True, type=_LEVELS, help="Only this level; may be repeated.")
    return level(case(quick(command)))


@click.group()
def conformance() -> None:
    """Hold a backend to the contract, case by case, and report it.

    \b
    Exit codes:
      0  every case passed, is unsupported, or failed as expected
      1  a case failed, or none passed; compare: a case that passed no longer does
      2  wrong usage, or a file that was refused
      3  the backend has no device here
    """


@conformance.command()
@click.option("--backend", required=True, help="The backend, by name.")
@click.option("--kernel", default="auto", help="Which of its attention kernels.", show_default=True)
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A setting of the backend's own.")
@_selection
@click.option("--report", type=_FILE, help="Write the report to this file.")
@click.option("--expectations", type=_FILE, help="Expected failures and tolerances of this backend, in TOML.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Cases at a time.")
@click.option(
    "--patience", type=click.FloatRange(0.01, 1000), default=1.0, help="Multiplies the time limits (slow simulators)."
)
def run(
    backend: str,
    kernel: str,
    options: tuple[str, ...],
    levels: tuple[str, ...],
    pattern: str,
    quick: bool,
    report: Path | None,
    expectations: Path | None,
    jobs: int,
    patience: float,
) -> None:
    """Run the suite on one backend.

    Each case runs in a worker process: one that crashes or hangs has failed, and the others go on.
    """
    from octavo_conformance.console import Console
    from octavo_conformance.report import ReportError, Selection, count, write_report
    from octavo_conformance.session import Session
    from octavo_conformance.verdict import Verdict

    if report is not None and not report.absolute().parent.is_dir():
        raise click.UsageError(f"There is no folder {report.absolute().parent} for the report.")
    selection = Selection(tuple(Level(level) for level in levels) or tuple(Level), pattern, quick)
    try:
        session = Session.prepare(backend, kernel, options, selection, expectations, jobs, patience)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # what stops a job stops its workers, too
    with session:
        opened = session.opened
        if opened.unknown:
            raise click.UsageError(opened.unknown)
        console = Console()
        console.begin(session)
        with console.progress(len(session.cases)) as advance:
            for outcome in session.run():
                if outcome.verdict is Verdict.FAILED and opened.info is not None:
                    console.failure(session.explain(outcome))
                advance(outcome)
        finished = session.report()
    console.end(finished)
    if report is not None:
        try:
            write_report(finished, report)
        except ReportError as error:
            raise click.UsageError(str(error)) from None
        console.wrote(report)
    if opened.unavailable:
        sys.exit(UNAVAILABLE)
    sys.exit(0 if count(finished.results).ok else FAILED)


@conformance.command(name="list")
@_selection
def list_cases(levels: tuple[str, ...], pattern: str, quick: bool) -> None:
    """List the ids of the cases."""
    from octavo_conformance.must_pass import ids

    found = ids([Level(level) for level in levels], pattern, quick)
    if not found:
        raise click.UsageError(
            f"No case of the suite matches {pattern!r} in the levels and the set that were asked for."
        )
    click.echo("\n".join(found))


@conformance.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
def compare(before: Path, after: Path) -> None:
    """Say what changed from one report to another.

    Exit code 1 where a case that passed no longer does, or was not run.
    """
    from octavo_conformance.report import ReportError, read_report
    from octavo_conformance.report import compare as compare_reports

    try:
        comparison = compare_reports(read_report(before), read_report(after))
    except ReportError as error:
        raise click.UsageError(str(error)) from None
    click.echo(comparison.text())
    sys.exit(FAILED if comparison.regressions or comparison.lost else 0)


@conformance.command()
@click.argument("reports", type=_FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder.")
def site(reports: tuple[Path, ...], output: Path) -> None:
    """Render reports as static pages: the matrix of backends, operations and dtypes, and every error figure."""
    from octavo_conformance.report import ReportError, read_report
    from octavo_conformance.site import render

    try:
        pages = render([read_report(path) for path in reports], output)
    except ReportError as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"Wrote {len(pages)} pages; open {output / 'index.html'}")
