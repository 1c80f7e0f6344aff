"""Launching a kernel: for real, or recorded.

A kernel's host function works on shapes, strides and dtypes alone and never looks at values. So the same function
launches on a device, and on torch's meta tensors under a `Recorder` says exactly what it would launch: that is what
the ahead-of-time check compiles, and what the tests count specialisations of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch

from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import Tunable, TuningTable


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel.

    kernel: a function under `triton.jit`. grid: programs along up to three axes. arguments: by name, compile-time
    constants included. options: num_warps, num_stages and what else the code generator takes.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Launcher(Protocol):
    """Whatever takes launches."""

    def __call__(self, launch: Launch) -> None: ...


def run(launch: Launch) -> None:
    """Launch on the device of the arguments, on its current stream. Nothing waits for it."""
    if all(launch.grid):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)


@dataclass(slots=True)
class Recorder:
    """Takes launches without running them."""

    launches: list[Launch] = field(default_factory=list)

    def __call__(self, launch: Launch) -> None:
        self.launches.append(launch)


@dataclass(frozen=True, slots=True)
class KernelRuntime:
    """What every kernel's host function gets: what it runs on, what was tuned for it, and who takes the launch."""

    target: Target
    tuning: TuningTable
    launcher: Launcher = run

    def tuned(self, tunable: Tunable, **facts: int | str) -> dict[str, int]:
        """The kernel's parameters for these facts on this target; see `TuningTable.choose`."""
        return self.tuning.choose(tunable, self.target.arch, **facts)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], *, num_warps: int, num_stages: int = 1
    ) -> None:
        """Launch a kernel; the compile-time constant INTERPRETED is passed to those that have it."""
        options = {} if self.target.interpreted else {"num_warps": num_warps, "num_stages": num_stages}
        self.launcher(Launch(kernel, grid, arguments, options))


def dtype_name(dtype: torch.dtype) -> str:
    """As tuning tables spell it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
