"""A worker process as the runner sees it: started when needed, replaced when it dies, stopped when it hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import psutil

from octavo.backend import Capabilities
from octavo_conformance.case import Case
from octavo_conformance.raised import shortened
from octavo_conformance.running.wire import Answer, Assignment, Opened, receive, send
from octavo_conformance.running.worker import STACKS
from octavo_conformance.verdict import Outcome, Verdict

T = TypeVar("T")

START_LIMIT = 300.0
"""Seconds that opening a device may take."""

_LAST_WORDS = 12  # lines of standard error that go into a verdict
_LAST_BYTES = 1 << 16  # of standard error that are looked at for them


class Worker:
    """Runs cases in a process of its own. A case that ends the process, or does not end, has failed; the next case
    gets a new process.

    threads: OMP_NUM_THREADS of the process, unless it is set already. patience: multiplies all time limits. claims:
    what the device claimed when it was first opened; None before.
    """

    def __init__(self, assignment: Assignment, threads: int | None = None, patience: float = 1.0) -> None:
        self._assignment = assignment
        self._patience = patience
        self._environment = dict(os.environ)
        if threads is not None:
            self._environment.setdefault("OMP_NUM_THREADS", str(threads))
        self._running: _Process | None = None
        self.claims: Capabilities | None = None

    def start(self) -> Opened:
        """Start a process and have it open the device. One that dies or hangs over it is a broken backend."""
        self.close()
        limit = START_LIMIT * self._patience
        self._running = _Process(self._environment)
        try:
            opened = self._running.ask(self._assignment, Opened, limit)
        except _Ended as ended:
            self.close()
            return Opened(broken=f"While its device was opened, {ended}")
        if opened.info is None:
            self.close()
            return opened
        if self.claims not in (None, opened.info.capabilities):
            self.close()
            return Opened(broken="The device claimed other capabilities when it was opened again.")
        self.claims = opened.info.capabilities
        return opened

    def run(self, case: Case) -> Outcome:
        """Run one case."""
        if self._running is None:
            opened = self.start()
            if opened.info is None:
                return Outcome(case.id, Verdict.FAILED, opened.broken or opened.unavailable or opened.unknown)
        assert self._running is not None
        start = time.monotonic()
        try:
            answer = self._running.ask(case.id, Answer, case.limit * self._patience)
            if answer.outcome.case != case.id:
                raise _Ended("another process than the worker answered: the backend has forked")
        except _Ended as ended:
            self.close()
            reason = str(ended)
            return Outcome(case.id, Verdict.FAILED, reason[0].upper() + reason[1:], seconds=time.monotonic() - start)
        if not answer.healthy:
            self.close()
        return answer.outcome

    def close(self) -> None:
        """Stop the process and whatever it started."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def interrupt(self) -> None:
        """End the case that runs now, from another thread: its process is killed, and `run` returns."""
        running = self._running
        if running is not None:
            running.kill()


class _Ended(Exception):  # noqa: N818  # what became of a process, not what went wrong in this one
    """A worker died, hung, or said what no worker says; the message says how, and what it printed last."""


class _Process:
    """One process, its pipes, and a folder for what its cases write."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        # Gone with the process, however it ends.
        self._scratch = tempfile.TemporaryDirectory(prefix="octavo-conformance-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "octavo_conformance.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment | {"TMPDIR": self._scratch.name},
            start_new_session=True,  # it is stopped with all that it started, and not by the terminal's Ctrl-C
        )

    def ask(self, question: object, kind: type[T], limit: float) -> T:
        """Send a message and wait for its answer. Raises _Ended, after `limit` seconds at the latest."""
        printed = os.fstat(self._errors.fileno()).st_size
        deadline = time.monotonic() + limit
        try:
            send(_descriptor(self._process.stdin), question)
            return receive(_descriptor(self._process.stdout), kind, deadline)
        except msgspec.DecodeError as error:
            raise _Ended(shortened(f"it answered what is no answer ({error}){self._last_words(printed)}")) from None
        except (EOFError, TimeoutError, OSError):
            raise _Ended(shortened(self._ending(deadline, limit) + self._last_words(printed))) from None

    def kill(self) -> None:
        """Kill the process and all that it started, those that left its process group too."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        with suppress(ProcessLookupError):  # it is gone, and nothing of its group is left
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process, and clean up after it."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()
        self._scratch.cleanup()

    def _ending(self, deadline: float, limit: float) -> str:
        """How the process ended; one that goes on until its deadline hangs."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(max(0.1, deadline - time.monotonic()))
            if code < 0:
                return f"the process died of {signal.Signals(-code).name}"
            return f"the process ended itself with exit code {code}"
        self._process.send_signal(STACKS)
        time.sleep(0.5)  # for the stacks to be written
        return f"it gave no result within {limit:g} seconds and was stopped"

    def _last_words(self, start: int) -> str:
        """What the process printed last, of what it printed from byte `start` on."""
        size = os.fstat(self._errors.fileno()).st_size
        self._errors.seek(max(start, size - _LAST_BYTES))
        lines = _shown(self._errors.read().decode(errors="replace").splitlines())
        return ". The process said last:\n" + "\n".join(lines) if lines else ""


def _descriptor(pipe: IO[bytes] | None) -> int:
    assert pipe is not None  # both pipes of a worker are opened with it
    return pipe.fileno()


def _shown(lines: list[str]) -> list[str]:
    """The last lines; of a dump of stacks, the first frames of the thread at fault, without the suite's own."""
    dumps = [index for index, line in enumerate(lines) if line.startswith(("Current thread", "Fatal Python error"))]
    if not dumps:
        return lines[-_LAST_WORDS:]
    suite = str(Path(__file__).parent)
    frames = [line for line in lines[dumps[0] :] if suite not in line and "<frozen" not in line and line.strip()]
    return frames[:_LAST_WORDS]
