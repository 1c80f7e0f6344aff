"""What a platform's devices have of memory, and have left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil

from octavo.backend import MemoryInfo
from octavo_xla.platforms import Platform


def of(platform: Platform, devices: Sequence[Any]) -> MemoryInfo:
    """Free and total bytes of one device; of the fullest, where there are several: each holds an equal part."""
    if platform is Platform.CPU:
        host = psutil.virtual_memory()
        # The devices that a host pretends to be share its memory.
        return MemoryInfo(host.available // len(devices), host.total // len(devices), shared_with_host=True)
    figures = [device.memory_stats() for device in devices]
    fullest = min(figures, key=lambda stats: int(stats["bytes_limit"]) - int(stats["bytes_in_use"]))
    limit = int(fullest["bytes_limit"])
    return MemoryInfo(limit - int(fullest["bytes_in_use"]), limit)
