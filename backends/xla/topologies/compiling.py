"""The end of a rehearsal on chips that are not there: the program, compiled, and nothing to run it on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from octavo_xla.compiling import COMPILER_OPTIONS, Compilations


class NothingToRunOnError(Exception):
    """Raised where a program would run first. fingerprint: of what was to be compiled. compiled: jax's, or None where
    that is known already. seconds: of processor time, for lowering and compiling.
    """

    def __init__(self, fingerprint: str, compiled: Any | None, seconds: float) -> None:
        super().__init__("The program is compiled, and there is no device to run it.")
        self.fingerprint, self.compiled, self.seconds = fingerprint, compiled, seconds


class AheadOfTime(Compilations):
    """Compiles a program and stops there. known: whether a fingerprint need not be compiled. topology: part of it."""

    def __init__(self, topology: str, known: Callable[[str], bool]) -> None:
        super().__init__(cache=None)
        self._topology, self._known = topology, known

    def compile(self, name: str, jitted: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
        started = time.process_time()
        lowered = jitted.lower(*arguments)
        parts = (self._topology, str(dict(COMPILER_OPTIONS)), lowered.as_text())
        fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        compiled = None if self._known(fingerprint) else lowered.compile()
        raise NothingToRunOnError(fingerprint, compiled, time.process_time() - started)
