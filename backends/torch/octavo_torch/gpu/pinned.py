"""Pinned host buffers, used again once the transfers that read or wrote them are done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo_torch.gpu.packing import NOTHING, Layout
from octavo_torch.gpu.runtime import Mark, Runtime

_SMALLEST = 4096
_MOST_IDLE = 16
"""Buffers that are kept while nobody uses them; more are only needed while a model is loaded."""


class PinnedPool:
    """Pinned buffers of one device. Never waits: where none is free there is a new one."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._idle: list[_Buffer] = []

    def take(self, size: int) -> Lease:
        """A buffer of at least `size` bytes for as long as the lease is held."""
        for index, buffer in enumerate(self._idle):
            if len(buffer.array) >= size and (buffer.mark is None or buffer.mark.passed()):
                return Lease(self, self._idle.pop(index))
        return Lease(self, _Buffer(self._runtime, max(_SMALLEST, 1 << (size - 1).bit_length())))

    def _give(self, buffer: _Buffer) -> None:
        self._idle.append(buffer)
        if len(self._idle) > _MOST_IDLE:
            del self._idle[0]


class Lease:
    """A pinned buffer as long as somebody holds the lease; after that, the next one's as soon as `mark` has passed.

    tensor uint8 [capacity]; array: the same memory for NumPy.
    """

    __slots__ = ("_buffer", "_pool", "array", "tensor")

    array: np.ndarray[Any, Any]
    tensor: torch.Tensor

    def __init__(self, pool: PinnedPool, buffer: _Buffer) -> None:
        self._pool, self._buffer = pool, buffer
        self.tensor, self.array = buffer.tensor, buffer.array

    def arrays(self, layout: Layout) -> list[np.ndarray[Any, Any]]:
        """The arrays of a layout in this buffer, as views."""
        return self._buffer.arrays(layout)

    def until(self, mark: Mark) -> None:
        """A transfer that was queued before `mark` uses the buffer."""
        self._buffer.mark = mark

    def __del__(self) -> None:
        self._pool._give(self._buffer)


class _Buffer:
    __slots__ = ("_arrays", "_layout", "array", "mark", "tensor")

    def __init__(self, runtime: Runtime, size: int) -> None:
        self.tensor = runtime.pinned(size)
        self.array: np.ndarray[Any, Any] = self.tensor.numpy()
        self.mark: Mark | None = None
        self._layout, self._arrays = NOTHING, NOTHING.arrays(self.array)

    def arrays(self, layout: Layout) -> list[np.ndarray[Any, Any]]:
        if layout is not self._layout:  # decode steps have one layout for a long time: making views costs as they copy
            self._layout, self._arrays = layout, layout.arrays(self.array)
        return self._arrays
