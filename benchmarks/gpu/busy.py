"""How much of the time a device has nothing to do, by the profiler's record of its kernels and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile


def idle_share(run: Callable[[], object], device: torch.device) -> float | None:
    """Part of the time from the first kernel to the last in which none ran, 0 to 1; None on a host."""
    if device.type == "cpu":
        run()
        return None
    activity = ProfilerActivity.XPU if device.type == "xpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as recorded:
        run()
        torch.get_device_module(device).synchronize()
    events = recorded.events() or []
    spans = [(event.time_range.start, event.time_range.end) for event in events if event.device_type.name != "CPU"]
    return idle_of(spans)


def idle_of(spans: Iterable[tuple[float, float]]) -> float | None:
    """The share of the time from the first start to the last end that no span covers; None where there is no time."""
    ordered = sorted(spans)
    if not ordered:
        return None
    first, reached = ordered[0]
    busy = reached - first
    for start, end in ordered[1:]:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1.0 - busy / (reached - first) if reached > first else None
