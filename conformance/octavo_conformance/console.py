"""What a run of the suite shows on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from octavo_conformance import SUITE_VERSION
from octavo_conformance.report import Report, by_level, count
from octavo_conformance.report.terminal import plain
from octavo_conformance.session import Session
from octavo_conformance.verdict import Outcome, Verdict


class Console:
    """Results on standard output, the progress bar on standard error where that is a terminal."""

    def __init__(self) -> None:
        self._out = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = rich.console.Console(stderr=True)

    def begin(self, session: Session) -> None:
        """Say what is about to run on what."""
        opened, name = session.opened, session.assignment.backend
        if opened.info is not None:
            info = opened.info
            self._print(f"Backend {name} ({opened.package} {opened.version}), kernel {info.kernel}")
            self._print(f"Device {info.name}, {info.arch}, {info.driver}")
        elif opened.unavailable:
            self._print(f"Backend {name} has no device here: {opened.unavailable}")
        else:
            self._print(f"Backend {name} cannot be opened, so that every case fails: {opened.broken}")
        self._print(f"Suite {SUITE_VERSION}, cases: {len(session.cases)}")

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[Outcome], None]]:
        """A bar over the cases; gives the function that takes each outcome."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._bar, disable=not self._bar.is_terminal, transient=True) as bar:
            task = bar.add_task("cases", total=total)

            def advance(outcome: Outcome) -> None:
                bar.update(task, advance=1, description=outcome.case[:60])

            yield advance

    def failure(self, text: str) -> None:
        """A case that failed, as soon as it has."""
        self._out.print(Text("FAILED ", style="bold red").append(Text(plain(text), style="default")))

    def end(self, report: Report) -> None:
        """The counts, level by level, and the score."""
        every = count(report.results)
        table = Table(box=None, pad_edge=False)
        table.add_column("level")
        shown = [verdict for verdict in Verdict if every.of(verdict) or verdict is Verdict.PASSED]
        for verdict in shown:
            table.add_column(verdict.value, justify="right")
        for level, counts in by_level(report).items():
            table.add_row(level.value, *(str(counts.of(verdict)) for verdict in shown))
        self._out.print(table)
        seconds = sum(result.seconds for result in report.results)
        self._print(f"{every.passed} of {every.judged} cases passed, in {seconds:.0f} seconds of cases")
        if every.judged and not every.passed and not every.failed:
            self._print("Nothing passed: that is no conformance, whatever was not claimed.")

    def wrote(self, path: Path) -> None:
        """Where the report is."""
        self._print(f"Report: {path}")

    def _print(self, text: str) -> None:
        self._out.print(Text(plain(text)))
