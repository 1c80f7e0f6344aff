"""Every compilation of one device: counted, timed, kept on disk, and explained where it fails."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from octavo_xla.program_cache import ProgramCache

COMPILER_OPTIONS: Mapping[str, Any] = MappingProxyType({"xla_allow_excess_precision": False})
"""bfloat16 results are rounded where the contract rounds them: draws do not depend on what XLA fuses."""

_CACHE_HIT = "/jax/compilation_cache/cache_hits"

_log = logging.getLogger(__name__)


class Compilations:
    """Compiles programs and counts them.

    cache: where they are kept, None for nowhere. count: of all programs; read: of those, the ones that came from the
    cache. seconds: spent on all of them.
    """

    def __init__(self, cache: ProgramCache | None) -> None:
        self.cache = cache
        self.count = 0
        self.read = 0
        self.seconds = 0.0

    def compile(self, name: str, jitted: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
        """A program for arguments of these shapes. name: what it is, for the log."""
        hits: list[str] = []

        def listen(event: str, **_: Any) -> None:
            if event == _CACHE_HIT:
                hits.append(event)

        started = time.perf_counter()
        jax.monitoring.register_event_listener(listen)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                program: Callable[..., Any] = jitted.lower(*arguments).compile()
        finally:
            jax.monitoring.unregister_event_listener(listen)
        self._explain(caught)
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

    def _explain(self, caught: Sequence[warnings.WarningMessage]) -> None:
        """What jax says of its cache as one sentence; what else it says, as it says it."""
        for each in caught:
            if "persistent compilation cache" not in str(each.message):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
            elif self.cache is not None:
                _log.warning(self.cache.discard(str(each.message)))
