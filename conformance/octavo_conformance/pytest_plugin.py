"""The suite under pytest: options, and the fixture `octavo_case`, which stands for one case.

pytest loads this module in every run of an environment that has the package, so it imports nothing before it is asked.
Each case runs in a worker process: one that crashes or hangs is one failed test.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from octavo_conformance.session import Session

_KEY = pytest.StashKey[Any]()
USAGE_EXIT, UNAVAILABLE_EXIT = 4, 3
"""pytest's exit codes where there is no such backend (its own for wrong usage), and no device here (the suite's)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, as those of `octavo conformance run`."""
    group = parser.getgroup("octavo", "conformance of an Octavo backend")
    group.addoption("--octavo-backend", metavar="NAME", help="run the conformance suite on this backend")
    group.addoption("--octavo-kernel", metavar="NAME", default="auto", help="which of its attention kernels")
    group.addoption("--octavo-option", metavar="KEY=VALUE", action="append", default=[], help="the backend's own")
    group.addoption("--octavo-level", metavar="LEVEL", action="append", default=[], help="only this level; repeatable")
    group.addoption(
        "--octavo-case", metavar="PATTERN", default="", help="only cases whose id matches: * is any text, a space is or"
    )
    group.addoption("--octavo-quick", action="store_true", help="only the quick set")
    group.addoption("--octavo-expectations", metavar="FILE", help="expected failures and tolerances, in TOML")
    group.addoption("--octavo-report", metavar="FILE", help="write the report to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the run of the suite that the options ask for. Raises pytest.UsageError."""
    backend = config.getoption("--octavo-backend")
    if backend is None:
        return
    from octavo_conformance.case import Level
    from octavo_conformance.report import Selection
    from octavo_conformance.session import Session

    try:
        levels = tuple(Level(level) for level in config.getoption("--octavo-level")) or tuple(Level)
        config.stash[_KEY] = Session.prepare(
            backend=backend,
            kernel=config.getoption("--octavo-kernel"),
            options=config.getoption("--octavo-option"),
            selection=Selection(levels, config.getoption("--octavo-case"), config.getoption("--octavo-quick")),
            expectations=_expectations(config),
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each selected case."""
    if "octavo_case" not in metafunc.fixturenames:
        return
    session = metafunc.config.stash.get(_KEY, None)
    if session is None:
        raise pytest.UsageError("The conformance suite needs --octavo-backend NAME: `octavo backends` lists them.")
    cases = [PytestCase(session, case.id) for case in session.cases]
    metafunc.parametrize("octavo_case", cases, ids=lambda case: case.id)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the workers, write the report if every selected case has run, and let no run succeed that proved nothing."""
    from octavo_conformance.verdict import Verdict

    running = session.config.stash.get(_KEY, None)
    if running is None:
        return
    running.close()
    writer = session.config.get_terminal_writer()
    report = session.config.getoption("--octavo-report")
    if report is not None:
        try:
            if not running.write(Path(report)):
                writer.line("\nNo report was written: it holds every selected case, and some did not run.")
        except ValueError as error:  # a folder that is not there, or not to be written to
            writer.line(f"\n{error}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
    verdicts = [outcome.verdict for outcome in running.outcomes.values()]
    if verdicts and Verdict.PASSED not in verdicts and session.exitstatus == pytest.ExitCode.OK:
        writer.line("\nNo case passed: that is no conformance, whatever was not claimed.")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class PytestCase:
    """One case as a test."""

    def __init__(self, session: Session, case: str) -> None:
        self._session = session
        self.id = case

    def run(self) -> None:
        """Run it; its verdict becomes pytest's."""
        from octavo_conformance.verdict import Verdict

        __tracebackhide__ = True
        opened = self._session.opened
        if opened.unknown:
            pytest.exit(opened.unknown, returncode=USAGE_EXIT)
        if opened.unavailable:
            pytest.exit(
                f"Backend {self._session.assignment.backend!r} is not available here: {opened.unavailable}",
                returncode=UNAVAILABLE_EXIT,
            )
        outcome = self._session.run_one(self.id)
        if outcome.verdict is Verdict.FAILED:
            pytest.fail(self._session.explain(outcome), pytrace=False)
        if outcome.verdict is Verdict.UNSUPPORTED:
            pytest.skip(f"unsupported: {outcome.reason}")
        if outcome.verdict is Verdict.EXPECTED_FAILURE:
            pytest.xfail(outcome.reason)


def _expectations(config: pytest.Config) -> Path | None:
    """The file of expectations: from here where it is given by hand, from the root where pyproject.toml names it."""
    name = config.getoption("--octavo-expectations")
    if name is None:
        return None
    return Path(name) if Path(name).exists() else config.rootpath / name
