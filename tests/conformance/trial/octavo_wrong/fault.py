"""A fault: what is wrong, where it has to be caught at the latest, and the backend that has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from octavo.backend import Backend, Device, DeviceConfig, Kernel, Ops, Probe
from octavo.reference.plugin import KERNEL
from octavo_conformance.case import Level


def probe() -> Probe:
    """What an honest one says."""
    kernel = Kernel(KERNEL, True, "the contract's own operations on NumPy arrays", selected=True)
    return Probe(True, "NumPy runs anywhere", kernels=(kernel,))


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake, and the backend that makes it.

    what: a sentence. level: where it must be caught at the latest. op: the operation that is wrong, or the part of the
    contract. build: opens the device. above_ops: why no case of an operation can catch it, where `level` is above
    `ops`.
    fatal: it ends or blocks its process, so that its cases run in one of their own.
    """

    name: str
    what: str
    level: Level
    op: str
    build: Callable[[DeviceConfig], Device]
    above_ops: str = ""
    fatal: bool = False
    probe: Callable[[], Probe] = field(default=probe)
    api_version: int = 1

    @property
    def backend_name(self) -> str:
        return f"wrong-{self.name}"

    def backend(self) -> Backend:
        return Backend(self.backend_name, self.api_version, self.what, self.probe, self.build, priority=-1)


def in_ops(op: str, *kinds: type[Ops], fatal: bool = False) -> Iterator[Fault]:
    """A fault for each class of operations; its name and what it does are the class's."""
    for kind in kinds:
        yield in_device(op, Level.OPS, ops=kind, fatal=fatal)


def in_device(
    part: str,
    level: Level = Level.CONTRACT,
    device: Callable[..., Any] | None = None,
    ops: type[Ops] | None = None,
    **details: Any,
) -> Fault:
    """A fault of a device class, of a class of operations on an otherwise right device, or of both."""
    wrong = ops if ops is not None else device
    assert isinstance(wrong, type)
    assert wrong.__doc__
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", wrong.__name__).lower()

    def build(config: DeviceConfig) -> Device:
        from octavo_wrong.device import WrongDevice

        opened: Device = (device or WrongDevice)(config, f"wrong-{name}")
        if ops is not None:
            opened.ops = ops()
        return opened

    return Fault(name, " ".join(wrong.__doc__.split()), level, part, build, **details)
