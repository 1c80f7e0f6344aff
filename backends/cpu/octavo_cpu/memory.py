"""How much memory this process may still take: the machine's, or its control group's limit where that is tighter."""

from __future__ import annotations

from pathlib import Path

import psutil

from octavo.backend import MemoryInfo

_CGROUP = Path("/sys/fs/cgroup")


def host_memory(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> MemoryInfo:
    """Free and total bytes. root, membership: where the control groups are mounted and which one this process is in."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for group in _groups(root, membership):
        limit, used = _limit(group)
        if limit is not None:
            total = min(total, limit)
            free = min(free, max(0, limit - used))
    return MemoryInfo(free=free, total=total, shared_with_host=True)


def _groups(root: Path, membership: Path) -> list[Path]:
    """This process's control group and all above it: each may set a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "memory" in controllers.split(","):
            base = root / "memory"
        else:
            continue
        parts = Path(path).parts[1:]
        groups += [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return groups


def _limit(group: Path) -> tuple[int | None, int]:
    """A group's limit, None without one, and what counts against it: not files that are only cached."""
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit = _number(group / limit_name)
        if limit is None:
            continue
        cached = 0
        for line in _lines(group / "memory.stat"):
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                cached = max(cached, int(value))
        return limit, max(0, (_number(group / used_name) or 0) - cached)
    return None, 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None
