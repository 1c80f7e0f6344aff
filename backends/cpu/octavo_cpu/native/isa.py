"""Which build of the kernels runs: chosen from what this processor can do and what the package was built with."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from octavo.backend import BackendUnavailableError, Kernel

VARIABLE = "OCTAVO_CPU_ISA"
REBUILD = "pip install --force-reinstall --no-deps octavo-cpu, with a C++ compiler at hand"


class Isa(str, Enum):
    """An instruction set the kernels are built for, best first; TORCH is none: torch's own operations."""

    AVX512 = "avx512"
    AVX2 = "avx2"
    GENERIC = "generic"
    TORCH = "torch"


_LEVELS = {Isa.AVX512: 2, Isa.AVX2: 1, Isa.GENERIC: 0}


@dataclass(frozen=True, slots=True)
class Choice:
    """The instruction set that runs, and why."""

    isa: Isa
    reason: str


def library_path(isa: Isa) -> Path | None:
    """Where the build for an instruction set lies, or None where there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).parent / f"kernels_{isa.value}{suffix}"
        if path.exists():
            return path
    return None


def choose(asked: str = "auto", environment: Mapping[str, str] = os.environ) -> Choice:
    """The instruction set that runs: `asked` by name, else the environment's, else the best available.

    Raises BackendUnavailableError for a name that is unknown, or that this processor or this build lacks.
    """
    source = "asked for by name"
    if asked == "auto" and environment.get(VARIABLE, "auto") != "auto":
        asked, source = environment[VARIABLE], f"asked for by {VARIABLE}"
    found = {kernel.name: kernel for kernel in _available()}
    if asked == "auto":
        best = next(kernel for kernel in found.values() if kernel.available)
        return Choice(Isa(best.name), best.reason)
    if asked not in found:
        raise BackendUnavailableError(f"Backend 'cpu' has no kernel {asked!r}; it has {', '.join(found)}.")
    if not found[asked].available:
        able = ", ".join(name for name, kernel in found.items() if kernel.available)
        raise BackendUnavailableError(
            f"Kernel {asked!r} of backend 'cpu' cannot run here: {found[asked].reason}. Those that can: {able}."
        )
    return Choice(Isa(asked), source)


def kernels() -> tuple[Kernel, ...]:
    """All kernels, whether each can run here and why; what "auto" would take is selected.

    Raises BackendUnavailableError where the environment asks for one that cannot run.
    """
    chosen = choose().isa
    return tuple(Kernel(k.name, k.available, k.reason, selected=k.name == chosen) for k in _available())


def _available() -> list[Kernel]:
    level = _processor_level()
    result = []
    for isa, needed in _LEVELS.items():
        if library_path(isa) is None:
            result.append(Kernel(isa.value, False, f"it was not built on installation; to build it: {REBUILD}"))
        elif level < needed:
            result.append(Kernel(isa.value, False, "this processor lacks the instructions"))
        else:
            result.append(Kernel(isa.value, True, "native kernels, the best this processor and this build have"))
    reason = "torch's own operations, on gathered keys: slow"
    if library_path(Isa.GENERIC) is None:
        reason += f"; native kernels were not built on installation, to build them: {REBUILD}"
    return [*result, Kernel(Isa.TORCH.value, True, reason)]


def _processor_level() -> int:
    """What the processor can do, asked of the build that runs on every one; -1 where there is no such build."""
    path = library_path(Isa.GENERIC)
    if path is None:
        return -1
    level: int = ctypes.CDLL(str(path)).octavo_processor_level()
    return level
