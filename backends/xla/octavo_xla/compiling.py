"""Every compilation of one device: counted, timed, kept on disk, and explained where it fails."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TextIO

import jax

from octavo_xla.program_cache import ProgramCache, kept_in
from octavo_xla.program_table import ProgramRoom

COMPILER_OPTIONS: Mapping[str, Any] = MappingProxyType({"xla_allow_excess_precision": False})
"""bfloat16 results are rounded where the contract rounds them: draws do not depend on what XLA fuses."""

_CACHE_HIT = "/jax/compilation_cache/cache_hits"

_log = logging.getLogger(__name__)


class Compilations:
    """Compiles programs and counts them.

    cache: where they are kept on disk, None for nowhere. room: for those that are held in memory. count: of all
    programs; read: of those, the ones that came from the cache. seconds: spent on all of them. compiling: whether one
    is under way; another thread may read it.
    """

    def __init__(self, cache: ProgramCache | None) -> None:
        self.cache = cache
        self.room = ProgramRoom()
        self.count = 0
        self.read = 0
        self.seconds = 0.0
        self.compiling = False

    def compile(self, name: str, jitted: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
        """A program for arguments of these shapes. name: what it is, for the log."""
        hits: list[str] = []

        def listen(event: str, **_: Any) -> None:
            if event == _CACHE_HIT:
                hits.append(event)

        started = time.perf_counter()
        self.compiling = True
        try:
            with kept_in(self.cache), self._cache_warnings(), _heard(listen):
                program: Callable[..., Any] = jitted.lower(*arguments).compile()
        finally:
            self.compiling = False
        taken = time.perf_counter() - started
        self.count += 1
        self.read += bool(hits)
        self.seconds += taken
        verb = "read from the cache" if hits else "compiled"
        _log.info("Program %d (%s) %s in %.1f s.", self.count, name, verb, taken)
        return program

    def summary(self) -> str:
        """One sentence."""
        compiled = self.count - self.read
        return f"{compiled} programs were compiled and {self.read} read from the cache, in {self.seconds:.1f} s."

    @contextmanager
    def _cache_warnings(self) -> Iterator[None]:
        """What jax says of its cache is logged as a sentence at once, before it writes what it could not read. What
        else is said comes after, as it was said.
        """
        since = time.time()
        others: list[tuple[Any, ...]] = []

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if self.cache is not None and "persistent compilation cache" in str(message):
                _log.warning("%s", self.cache.mend(str(message), since))
            else:
                others.append((message, category, filename, lineno))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = show
                yield
        finally:
            for each in others:
                warnings.warn_explicit(*each)


@contextmanager
def _heard(listener: Callable[..., None]) -> Iterator[None]:
    """A listener to jax's events, for a while."""
    jax.monitoring.register_event_listener(listener)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(listener)
