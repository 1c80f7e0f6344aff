"""What a part is made of: measurements, and what those of one process share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu.scale import Scale

Figures = Mapping[str, Any]


class AbsentError(Exception):
    """There is nothing to measure here, and why: a peer that is not installed, a size that does not fit."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Something that is measured on its own.

    name: unique in the check, "decode/batch=16,context=8192". run: gives its figures, plain data for JSON; raises
    AbsentError. limit: seconds after which it counts as hanging.
    """

    name: str
    run: Callable[[Bench], Figures]
    limit: float = 60.0


@dataclass(slots=True)
class Recorder:
    """Writes one line of JSON for each event, at once."""

    stream: TextIO

    def write(self, event: str, name: str, **fields: Any) -> None:
        self.stream.write(json.dumps({"event": event, "name": name, **fields}) + "\n")
        self.stream.flush()


@dataclass
class Bench:
    """What the measurements of one process share. Nothing is opened before it is asked for.

    deadline: `time.monotonic()` at which the part ends.
    """

    scale: Scale
    argument: str
    folder: Path
    deadline: float
    recorder: Recorder
    current: str = ""
    kept: dict[str, Any] = field(default_factory=dict)  # what one measurement leaves to the next ones

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def note(self, figures: Figures) -> None:
        """Figures so far: they count where the measurement does not come to its end."""
        self.recorder.write("note", self.current, figures=dict(figures))

    @cached_property
    def device(self) -> Any:
        """The backend's device (an `octavo.backend.Device` on torch tensors)."""
        from octavo.backend import DeviceConfig
        from octavo.backend.discovery import open_device

        return open_device(DeviceConfig(backend=self.scale.backend, kernel=self.scale.kernel)).device

    @cached_property
    def torch_device(self) -> Any:
        """Where the device's tensors are."""
        import numpy as np

        return self.device.upload(np.zeros(1, np.int32)).device

    @cached_property
    def clock(self) -> Any:
        from benchmarks.gpu.clock import Clock

        return Clock(self.torch_device, self.scale.measure_seconds, self.scale.samples)
