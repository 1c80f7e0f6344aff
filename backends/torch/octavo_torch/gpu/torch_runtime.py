"""The runtime of a card that torch drives: torch.cuda for NVIDIA and AMD, torch.xpu for Intel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.backend import MemoryInfo
from octavo_torch.gpu.runtime import Properties

_DRIVER_SHARE = 64 << 20
"""Most bytes that the driver is believed to take for one graph beside torch's pool: the card's own figure also shows
what other processes took meanwhile."""


class TorchRuntime:
    """Card `index` of "cuda" or "xpu", on torch's current stream."""

    def __init__(self, kind: str, index: int, properties: Properties, module: Any = None) -> None:
        """module: torch.cuda or torch.xpu; by itself, the one of that kind."""
        self.device = torch.device(kind, index)
        self.properties = properties
        self._module: Any = getattr(torch, kind) if module is None else module
        # torch.xpu has graphs since torch 2.11.
        self._graph_type: Any = getattr(self._module, "CUDAGraph", None) or getattr(self._module, "XPUGraph", None)
        self.records = self._graph_type is not None
        self._pool: Any = None
        self._side_stream: Any = None

    def activate(self) -> None:
        if self._module.current_device() != self.device.index:
            self._module.set_device(self.device.index)

    def memory(self) -> MemoryInfo:
        free, total = self._module.mem_get_info(self.device)
        held = self._module.memory_reserved(self.device) - self._module.memory_allocated(self.device)
        return MemoryInfo(free=free + held, total=total)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> _TorchMark:
        event = self._module.Event()
        event.record()
        return _TorchMark(event)

    def record(self, work: Callable[[], None]) -> _TorchGraph:
        # Recording cannot take what the allocator holds for others, so that goes back to the card first.
        self.trim()
        if self._pool is None:
            self._pool = self._module.graph_pool_handle()
            self._side_stream = self._module.Stream(self.device)
        free, held = self._module.mem_get_info(self.device)[0], self._module.memory_reserved(self.device)
        graph = self._graph_type()
        # The stream that work runs on cannot be recorded where it is the driver's default stream.
        self._side_stream.wait_stream(self._module.current_stream())
        with self._module.stream(self._side_stream):
            self._begin(graph)
            try:
                work()
            except BaseException:
                _abandon(graph)
                raise
            graph.capture_end()
        self._module.current_stream().wait_stream(self._side_stream)
        taken = free - self._module.mem_get_info(self.device)[0]
        grown = self._module.memory_reserved(self.device) - held
        return _TorchGraph(graph, max(0, min(taken, grown + _DRIVER_SHARE)))

    def trim(self) -> None:
        self._module.empty_cache()

    def _begin(self, graph: Any) -> None:
        if self.device.type == "cuda":
            # Other threads of the process may talk to the driver meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        else:
            graph.capture_begin(pool=self._pool)


class _TorchMark:
    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def passed(self) -> bool:
        return bool(self._event.query())


class _TorchGraph:
    def __init__(self, graph: Any, memory: int) -> None:
        self._graph, self.memory = graph, memory

    def replay(self) -> None:
        self._graph.replay()


def _abandon(graph: Any) -> None:
    """End a recording that failed, so that the stream and the allocator are usable again."""
    try:
        graph.capture_end()
    except RuntimeError:
        return  # it says that the recording failed, which is known
