"""Compiled programs on disk, from one start to the next: XLA's persistent cache, in a folder of this setting's own."""

from __future__ import annotations

import hashlib
import platform as machine
from pathlib import Path

import jax
import jaxlib

from octavo_xla.platforms import Platform


class ProgramCache:
    """A folder for the programs of this jax on this kind of machine.

    A program of another version, or of a processor with other instructions, is never found: its folder has another
    name. note: a sentence where nothing can be kept.
    """

    def __init__(self, folder: Path, platform: Platform, device_kind: str) -> None:
        self.folder = folder / f"{platform.value}-{_digest(platform, device_kind)}"
        self.note = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self.note = f"Compiled programs are not kept: {self.folder} cannot be written ({error.strerror})."
            return
        jax.config.update("jax_compilation_cache_dir", str(self.folder))
        # A program that takes less is compiled sooner than read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def discard(self, reason: str) -> str:
        """Forget all programs, since jax would keep one that cannot be read; a sentence about it."""
        for entry in self.folder.glob("*-cache"):
            entry.unlink(missing_ok=True)
        return (
            f"The programs kept in {self.folder} could not be read or written and are forgotten; they are compiled "
            f"anew: {reason}"
        )


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
