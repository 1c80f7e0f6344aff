"""What a device needs of a vendor's runtime: memory, pinned buffers, marks in the queue of work, recorded graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from octavo.backend import DeviceLostError, MemoryInfo

_FIRST_LOOKS = 20
"""Times a mark is looked at without a pause, which is shorter than the shortest sleep ..."""

_PAUSE = 50e-6
"""... and the seconds between looks after that."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What a card is.

    name: "NVIDIA H200". arch: "sm_90", "gfx942", "pvc". driver: a version, or "". processors: multiprocessors, compute
    units or Xe cores. shared_memory: bytes that one program may use. warp_size: threads in lockstep.
    """

    name: str
    arch: str
    driver: str
    processors: int
    shared_memory: int
    warp_size: int


class Mark(Protocol):
    """A place in the queue of a device's work."""

    def passed(self) -> bool:
        """Whether all work queued before the mark is done. Raises what the driver says of a failed device."""


class Graph(Protocol):
    """Work that was recorded once. Letting go of it gives its memory back to the graphs recorded after it."""

    memory: int  # bytes that recording it took from the card

    def replay(self) -> None:
        """Queue the recorded work again, on the same memory."""


class Runtime(Protocol):
    """One card, or what stands for it. All work is queued in the order of the calls."""

    device: torch.device
    properties: Properties
    records: bool  # whether `record` is possible

    def activate(self) -> None:
        """Make this the calling thread's current card."""

    def memory(self) -> MemoryInfo:
        """Free and total bytes. What the allocator holds and nobody uses is free; other processes' memory is not."""

    def pinned(self, size: int) -> torch.Tensor:
        """uint8 [size] of host memory that the card reads and writes by itself."""

    def mark(self) -> Mark:
        """A mark behind all work queued so far."""

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues, without running it. Graphs share one pool of memory.

        Raises what `work` raises, or RuntimeError for work that cannot be recorded; the card stays usable.
        """

    def trim(self) -> None:
        """Give memory that the allocator holds and nobody uses back to the card."""


def wait(mark: Mark, limit: float) -> None:
    """Return once a mark has passed.

    Looks instead of blocking in the driver: a card that never finishes must not take the engine with it. Raises
    DeviceLostError after `limit` seconds.
    """
    for _ in range(_FIRST_LOOKS):
        if mark.passed():
            return
    deadline = time.monotonic() + limit
    while not mark.passed():
        if time.monotonic() > deadline:
            raise DeviceLostError(f"The device has not finished its work after {limit:g} seconds.")
        time.sleep(_PAUSE)
