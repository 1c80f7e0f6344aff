"""torch's own OpenMP pool, for kernels that are not linked to OpenMP: a second runtime would fight it for the cores."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def gomp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded, or None where there is none to be found."""
    for path in _candidates():
        try:
            # Not loaded anew: only what is in the process already is torch's pool.
            library = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_LAZY)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def _candidates() -> list[Path]:
    home = Path(torch.__file__).parent
    beside = [
        path for folder in (home / "lib", home.parent / "torch.libs") for path in sorted(folder.glob("lib*omp*.so*"))
    ]
    beside += sorted((home / "lib").glob("lib*omp*.dylib"))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return beside
    loaded = {Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if len(line.split()) > 5}
    loaded = {path for path in loaded if path.name.startswith(("libgomp", "libomp", "libiomp"))}
    # Another package may have brought a runtime too; torch's own comes first.
    return sorted(loaded, key=lambda path: (path not in beside, str(path)))
