"""Compiled programs on disk, from one start to the next: XLA's persistent cache, in a folder of this setting's own."""

from __future__ import annotations

import hashlib
import logging
import os
import platform as machine
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

from octavo_xla.platforms import Platform

_ONE_AT_A_TIME = Lock()
"""jax has one cache in a process: devices that have another each take turns."""

_JAX_LOG = logging.getLogger("jax._src.compilation_cache")

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)

_WORTH_READING = 0.2
"""Seconds: a program that takes less is compiled sooner than read."""


class ProgramCache:
    """A folder for the programs of this jax on this kind of machine.

    A program of another version, or of a processor with other instructions, is never found: its folder has another
    name. readable: whether there is a folder to read. writable: whether new programs are kept; a write that fails ends
    that. note: a sentence about both.
    """

    def __init__(self, folder: Path, platform: Platform, device_kind: str) -> None:
        self.folder = folder / f"{platform.value}-{_digest(platform, device_kind)}"
        self.writable = self.readable = True
        self.note = f"Compiled programs are kept in {self.folder}."
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):  # without a name that another start could take away
                pass
        except OSError as error:
            self.writable, self.readable = False, os.access(self.folder, os.R_OK | os.X_OK) and self.folder.is_dir()
            known = f"those of {self.folder} are read, and it" if self.readable else f"{self.folder}"
            self.note = f"Compiled programs are not kept: {known} cannot be written ({error.strerror})."

    def mend(self, complaint: str, since: float) -> str:
        """Put right what jax complains of; a sentence about it. Raises nothing: the program itself is compiled.

        since: when its compilation began, in seconds of the epoch. What cannot be read and is older goes, and jax keeps
        the new program in its place; what is newer is being written by another process. Of a write that fails, what it
        left goes, and none is tried again.
        """
        found = _COMPLAINT.search(complaint)
        if found is None:
            return f"The programs kept in {self.folder}: {complaint}"
        writing, program = found["doing"] == "writing", found["program"]
        if writing:
            self.writable = False
        for entry in self.folder.glob(f"{escape(program)}-*-cache"):
            with suppress(OSError):  # gone already, or in a folder that cannot be written any more
                if (entry.stat().st_mtime >= since) is writing:
                    entry.unlink()
        if writing:
            return f"Compiled programs are kept no longer: {self.folder} could not be written. {complaint}"
        return f"A program kept in {self.folder} could not be read and is compiled anew. {complaint}"


_COMPLAINT = re.compile(r"Error (?P<doing>reading|writing) persistent compilation cache entry for '(?P<program>[^']*)'")
"""What jax warns with. An entry of its cache is named by the program, and a digest that it does not tell."""


@contextmanager
def kept_in(cache: ProgramCache | None) -> Iterator[None]:
    """What is compiled meanwhile is read from that cache and kept there, and nowhere else; nowhere at all where it is
    None or not even readable, whatever the environment says (JAX_COMPILATION_CACHE_DIR).
    """
    # No program takes for ever: none is written where that fails.
    worth_keeping = _WORTH_READING if cache is not None and cache.writable else inf
    wanted = (str(cache.folder) if cache is not None and cache.readable else None, worth_keeping, -1)
    with _ONE_AT_A_TIME:
        before = tuple(getattr(jax.config, setting) for setting in _SETTINGS)
        _configure(wanted)
        try:
            yield
        finally:
            _configure(before)  # of whoever else uses jax in this process


def _configure(values: Sequence[Any]) -> None:
    moved = jax.config.jax_compilation_cache_dir != values[0]
    for setting, value in zip(_SETTINGS, values, strict=True):
        jax.config.update(setting, value)
    if moved:  # it would go on with the folder that it had first
        level = _JAX_LOG.level
        _JAX_LOG.setLevel(max(level, logging.WARNING))  # it would say so, twice a program
        compilation_cache.reset_cache()
        _JAX_LOG.setLevel(level)


def _digest(platform: Platform, device_kind: str) -> str:
    parts = [jax.__version__, jaxlib.__version__, device_kind, machine.machine()]
    if platform is Platform.CPU:
        parts.append(_instructions())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _instructions() -> str:
    """The instruction sets of the host, for which XLA compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return machine.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), machine.processor())
