"""How long device work takes: device events around graph replays, medians over many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from octavo_server.bench.summary import Summary

Call = Callable[[], object]

_LONG = 1e-3  # seconds of device work that one sample covers at the least: timers and launches vanish beside it
_MOST = 200  # samples
_LONGEST_GRAPH = 256  # calls


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call. how: "graph" (replays of a captured graph), "events" (launched one by one) or "host"."""

    seconds: Summary
    how: str

    def figures(self, moved: float = 0.0, flops: float = 0.0) -> dict[str, object]:
        """For the record. moved: bytes that a call reads and writes at the least; flops: its operations; 0 for none."""
        median = self.seconds.median
        figures: dict[str, object] = {"seconds": self.seconds.as_data(), "timed_by": self.how}
        if moved:
            figures |= {"bytes": moved, "bytes_per_second": moved / median}
        if flops:
            figures |= {"flops": flops, "flops_per_second": flops / median}
        return figures


class Clock:
    """Times calls on one torch device.

    seconds: about what one timing takes, beside compilation. fewest: samples that it has even so.
    """

    def __init__(self, device: torch.device, seconds: float, fewest: int) -> None:
        self._seconds, self._fewest = seconds, fewest
        self._module: Any = torch.get_device_module(device)
        self._events = device.type != "cpu"
        self._graphs = device.type == "cuda"  # NVIDIA's and AMD's

    def time(self, calls: Sequence[Call]) -> Timing:
        """Seconds of a call. `calls` do the same work on different data, in turn, so that no cache helps.

        Small launches are timed as they run in a decode step, which is a graph: without the gaps between launches.
        """
        for call in calls:  # what is compiled is compiled now
            call()
        self._wait()
        once = self._lap(calls)
        passes = max(1, min(math.ceil(_LONG / once), _LONGEST_GRAPH // len(calls)))
        replay, how = self._prepared([*calls] * passes)
        if how == "graph":
            replay()  # the first one uploads the graph
        first = self._measured(replay)
        count = max(self._fewest, min(_MOST, int(self._seconds / max(first, 1e-9))))
        samples = [first, *(self._measured(replay) for _ in range(count - 1))]
        return Timing(Summary.of(samples).scaled(1.0 / (passes * len(calls))), how)

    def _prepared(self, calls: Sequence[Call]) -> tuple[Call, str]:
        def launch() -> None:
            for call in calls:
                call()

        if not self._events:
            return launch, "host"
        if self._graphs:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    launch()
            except Exception:  # work that cannot be captured (it plans on the host, it synchronises)
                self._wait()
                return launch, "events"
            return graph.replay, "graph"
        return launch, "events"

    def _lap(self, calls: Sequence[Call]) -> float:
        started = time.perf_counter()
        for call in calls:
            call()
        self._wait()
        return time.perf_counter() - started

    def _measured(self, run: Call) -> float:
        if not self._events:
            return self._lap([run])
        start, stop = (self._module.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    def _wait(self) -> None:
        if self._events:
            self._module.synchronize()
