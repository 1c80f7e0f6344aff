"""Compiling in processes of their own: a code generator that crashes takes one kernel with it and not the check."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeAlias

from triton import knobs

from octavo_torch.kernels.ahead_of_time import figures as figures_module
from octavo_torch.kernels.ahead_of_time.figures import Figures, read_figures
from octavo_torch.kernels.ahead_of_time.specialise import Specialised

PATIENCE = 600.0
"""Seconds after which a compilation is given up."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A compilation that came to nothing, and why."""

    reason: str


Outcome: TypeAlias = Figures | Failure


def reason_of(error: BaseException) -> str:
    """What the innermost error says: the others say where in the kernel it came up."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class FigureCache:
    """Figures of earlier runs, a file for each fingerprint; others where they would be read from code differently."""

    folder: Path

    def get(self, fingerprint: str) -> Figures | None:
        try:
            return Figures(**json.loads(self._path(fingerprint).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def put(self, fingerprint: str, figures: Figures) -> None:
        path = self._path(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(figures)))

    def _path(self, fingerprint: str) -> Path:
        reader = hashlib.sha256(inspect.getsource(figures_module).encode()).hexdigest()[:12]
        return self.folder / reader / f"{fingerprint}.json"


def build(
    wanted: Mapping[str, Specialised], cache: FigureCache, jobs: int, built: Callable[[str], None]
) -> dict[str, Outcome]:
    """Compile what the cache does not have. wanted: by fingerprint; built: called as each is there."""
    outcomes: dict[str, Outcome] = {}
    for fingerprint in wanted:
        if (figures := cache.get(fingerprint)) is not None:
            outcomes[fingerprint] = figures
            built(fingerprint)
    waiting = [fingerprint for fingerprint in wanted if fingerprint not in outcomes]
    running: list[_Compilation] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            fingerprint = waiting.pop(0)
            running.append(_Compilation.start(fingerprint, wanted[fingerprint]))
        wait([compilation.outcome for compilation in running], timeout=1.0)
        for compilation in [each for each in running if each.ended]:
            running.remove(compilation)
            outcome = compilation.collect()
            outcomes[compilation.fingerprint] = outcome
            if isinstance(outcome, Figures):
                cache.put(compilation.fingerprint, outcome)
            built(compilation.fingerprint)
    return outcomes


@dataclass(frozen=True, slots=True)
class _Compilation:
    fingerprint: str
    process: multiprocessing.process.BaseProcess
    outcome: Connection
    started: float

    @classmethod
    def start(cls, fingerprint: str, specialised: Specialised) -> _Compilation:
        # Forked, so that Triton and the kernels need not be imported again for each.
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_compile, args=(specialised, sender), daemon=True)
        process.start()
        sender.close()
        return cls(fingerprint, process, receiver, time.monotonic())

    @property
    def ended(self) -> bool:
        return self.outcome.poll() or time.monotonic() - self.started > PATIENCE

    def collect(self) -> Outcome:
        try:
            outcome: Outcome = (
                self.outcome.recv() if self.outcome.poll() else Failure(f"not done after {PATIENCE:.0f} s")
            )
        except EOFError:
            self.process.join()
            outcome = Failure(f"the compiler's process ended with {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.outcome.close()
        return outcome


def _compile(specialised: Specialised, sender: Connection) -> None:
    log = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="octavo-compile-") as folder, contextlib.redirect_stdout(log):
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        start = time.perf_counter()
        try:
            compiled = specialised.compile()
            sender.send(read_figures(compiled, log.getvalue(), round(time.perf_counter() - start, 2)))
        except Exception as error:
            sender.send(Failure(reason_of(error)))
