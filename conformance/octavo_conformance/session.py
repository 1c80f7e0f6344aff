"""One run of the suite on one backend: what is selected, what came of it, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from octavo.backend.discovery import AUTO
from octavo_conformance import must_pass
from octavo_conformance.case import Case
from octavo_conformance.expectations import Expectations, read_expectations
from octavo_conformance.report import Report, Selection, make_report, write_report
from octavo_conformance.running.pool import Pool
from octavo_conformance.running.wire import Assignment, Opened
from octavo_conformance.suite import select
from octavo_conformance.verdict import Outcome, Verdict


class SelectionError(ValueError):
    """What was asked to be run cannot be; the message says what can."""


class Session:
    """A run of the suite. Close it, or use it as a context.

    cases: those selected, in the order of the suite. outcomes: what came of those that have run, as judged by the
    expectations.
    """

    def __init__(
        self,
        assignment: Assignment,
        selection: Selection,
        expectations: Expectations,
        jobs: int,
        patience: float,
        arguments: Sequence[str],
    ) -> None:
        self.assignment = assignment
        self.selection = selection
        self.cases: Sequence[Case] = select(selection.levels, selection.pattern, selection.quick)
        self.outcomes: dict[str, Outcome] = {}
        self._expectations = expectations
        self._arguments = arguments
        self._pool = Pool(assignment, jobs, patience)
        if not self.cases:
            raise SelectionError(
                f"No case of the suite matches {selection.pattern!r} in the levels and the set that were asked for; "
                "`octavo conformance list` names them all."
            )

    @classmethod
    def prepare(
        cls,
        backend: str,
        kernel: str = AUTO,
        options: Sequence[str] = (),
        selection: Selection | None = None,
        expectations: Path | None = None,
        jobs: int = 1,
        patience: float = 1.0,
    ) -> Session:
        """A session from what a user says; options as "key=value", expectations as a file.

        Raises SelectionError or ExpectationsError.
        """
        if backend == AUTO:
            raise SelectionError(
                "Conformance is of one backend: name it instead of 'auto' (`octavo backends` lists them)."
            )
        pairs = dict(_pair(option) for option in options)
        expected = Expectations()
        arguments = ["--backend", backend]
        if kernel != AUTO:
            arguments += ["--kernel", kernel]
        for option in options:
            arguments += ["--option", option]
        if expectations is not None:
            expected = read_expectations(expectations, must_pass.ids())
            arguments += ["--expectations", str(expectations)]
        assignment = Assignment(backend, kernel, pairs, expected.overrides)
        return cls(assignment, selection or Selection(), expected, jobs, patience, arguments)

    @cached_property
    def opened(self) -> Opened:
        """The device, opened when first asked for, or why there is none."""
        return self._pool.open()

    def run(self) -> Iterator[Outcome]:
        """Run the selected cases; each outcome as it comes in."""
        if self.opened.info is None:
            for case in self.cases:
                yield self._keep(self._without_device(case))
            return
        for outcome in self._pool.run(self.cases):
            yield self._keep(outcome)

    def run_one(self, case: str) -> Outcome:
        """Run one of the selected cases."""
        (wanted,) = (known for known in self.cases if known.id == case)
        if self.opened.info is None:
            return self._keep(self._without_device(wanted))
        (outcome,) = self._pool.run([wanted])
        return self._keep(outcome)

    def explain(self, outcome: Outcome) -> str:
        """Why a case did not pass, and the command that runs it alone."""
        reason = outcome.reason.replace("\n", "\n  ")
        return f"{outcome.case}\n  {reason}\n  To reproduce: {self.command(outcome.case)}"

    def command(self, case: str) -> str:
        """The command line that runs one case."""
        return shlex.join(["octavo", "conformance", "run", *self._arguments, "--case", case])

    def report(self) -> Report:
        """The report of a run in which every selected case has its outcome."""
        return make_report(
            opened=self.opened,
            assignment=self.assignment,
            selection=self.selection,
            expectations=self._expectations,
            outcomes=[self.outcomes[case.id] for case in self.cases],
        )

    def write(self, path: Path) -> bool:
        """Write the report; False where some selected case has not run, and nothing is written."""
        if any(case.id not in self.outcomes for case in self.cases):
            return False
        write_report(self.report(), path)
        return True

    def close(self) -> None:
        """Stop the worker processes."""
        self._pool.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------- details

    def _keep(self, outcome: Outcome) -> Outcome:
        judged = self._expectations.judge(outcome)
        self.outcomes[judged.case] = judged
        return judged

    def _without_device(self, case: Case) -> Outcome:
        opened = self.opened
        if opened.unavailable:
            return Outcome(case.id, Verdict.UNAVAILABLE, opened.unavailable)
        return Outcome(case.id, Verdict.FAILED, opened.broken or opened.unknown)


def _pair(option: str) -> tuple[str, str]:
    key, sign, value = option.partition("=")
    if not sign or not key:
        raise SelectionError(f"A backend's option is given as key=value, and got {option!r}.")
    return key, value
