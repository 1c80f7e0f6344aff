"""Several workers, and the cases shared out among them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence

from octavo_conformance.case import Case, Level
from octavo_conformance.running.process import Worker
from octavo_conformance.running.wire import Assignment, Opened
from octavo_conformance.verdict import Outcome


class Pool:
    """Runs cases on worker processes, each with a device of its own.

    jobs: how many at a time. patience: multiplies all time limits. `close` it when done, or use it as a context.
    """

    def __init__(self, assignment: Assignment, jobs: int = 1, patience: float = 1.0) -> None:
        threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
        self._workers = [Worker(assignment, threads, patience) for _ in range(jobs)]
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def open(self) -> Opened:
        """Have the first worker open the device: what it is, or why there is none."""
        opened = self._workers[0].start()
        for worker in self._workers:  # held to what the first one saw
            worker.claims = self._workers[0].claims
        return opened

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """The outcome of each case, as they come in.

        Level `performance` runs last and on one worker: others would disturb it.
        """
        measured = [case for case in cases if case.level is Level.PERFORMANCE]
        others = [case for case in cases if case.level is not Level.PERFORMANCE]
        yield from self._run(others, self._workers)
        for worker in self._workers[1:]:
            worker.close()
        yield from self._run(measured, self._workers[:1])

    def close(self) -> None:
        """Stop the workers, whatever they do."""
        self._stop.set()
        for worker in self._workers:
            worker.interrupt()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, cases: Sequence[Case], workers: Sequence[Worker]) -> Iterator[Outcome]:
        waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        # The longest first, so that no worker ends with one while the others are idle.
        for case in sorted(cases, key=lambda case: -case.limit):
            waiting.put(case)
        done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

        def work(worker: Worker) -> None:
            try:
                while not self._stop.is_set():
                    done.put(worker.run(waiting.get_nowait()))
            except queue.Empty:
                pass
            except BaseException as error:  # a fault of the suite itself: it ends the run
                done.put(error)

        self._threads = [threading.Thread(target=work, args=(worker,)) for worker in workers[: len(cases)]]
        for thread in self._threads:
            thread.start()
        for _ in cases:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
