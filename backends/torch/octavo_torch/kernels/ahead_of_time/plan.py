"""Which launches there are to compile: the specimens of each kernel, recorded for each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from octavo_torch.kernels.ahead_of_time.specialise import Specialised, specialised
from octavo_torch.kernels.kernel import Kernel, Specimen
from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import TuningTable


@dataclass(frozen=True, slots=True)
class Entry:
    """One launch of a specimen on a target.

    name: of the specimen and the function, as budgets have it. specialised: what is compiled, or why the launch could
    not be made.
    """

    target: Target
    kernel: str
    name: str
    specialised: Specialised | str


def plan(target: Target, table: TuningTable, kernels: Sequence[Kernel], share: tuple[int, int] | None) -> list[Entry]:
    """The launches of the specimens on a target.

    share: (n, of): of all specimens those numbered n, n + of, n + 2 * of ... and one at least; all by default.
    """
    specimens = [(kernel.name, specimen) for kernel in kernels for specimen in kernel.specimens()]
    if share is not None:
        number, of = share
        specimens = specimens[number::of] or [specimens[number % len(specimens)]]
    return [entry for kernel, specimen in specimens for entry in _entries(target, table, kernel, specimen)]


def _entries(target: Target, table: TuningTable, kernel: str, specimen: Specimen) -> Iterator[Entry]:
    recorder = Recorder()
    try:
        specimen.call(KernelRuntime(target, table, recorder))
        launches = [specialised(launch, target) for launch in recorder.launches]
    except Exception as error:
        yield Entry(target, kernel, specimen.name, f"{type(error).__name__}: {error}")
        return
    seen: dict[str, list[Any]] = {}
    for launch in launches:
        others = seen.setdefault(launch.function, [])
        key = (launch.dynamic, launch.constants, launch.options)
        if key in others:
            continue
        others.append(key)
        suffix = f" {len(others)}" if len(others) > 1 else ""
        yield Entry(target, kernel, f"{specimen.name}: {launch.function}{suffix}", launch)
