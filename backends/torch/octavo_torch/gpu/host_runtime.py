"""The host in the place of a card: for Triton's interpreter, for tests, and for dry runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from octavo.backend import MemoryInfo
from octavo_torch.gpu.runtime import Properties
from octavo_torch.kernels.target import Target

_MEMINFO = Path("/proc/meminfo")


class HostRuntime:
    """Work is done when it is called. A graph calls the recorded work again, on the same memory."""

    records = True
    device = torch.device("cpu")

    def __init__(self, target: Target) -> None:
        """target: the architecture whose kernels and tuning are tried."""
        self.properties = Properties(
            name=f"the host, in the place of a card of {target.arch}",
            arch=target.arch,
            driver=f"torch {torch.__version__}",
            processors=target.processors,
            shared_memory=target.shared_memory,
            warp_size=target.warp_size,
        )

    def activate(self) -> None:
        """The host is always the current device."""

    def memory(self) -> MemoryInfo:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        return MemoryInfo(free=min(total, _available() or total), total=total, shared_with_host=True)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> _Passed:
        return _Passed()

    def record(self, work: Callable[[], None]) -> _Repeat:
        work()
        return _Repeat(work)

    def trim(self) -> None:
        """The host's allocator holds nothing back."""


class _Passed:
    def passed(self) -> bool:
        return True


class _Repeat:
    memory = 0

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


def _available() -> int | None:
    """Bytes that Linux would give without swapping; None elsewhere."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
