"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor torch-xla until asked to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

from octavo.backend import Backend, Device, DeviceConfig, Kernel, Probe, hookimpl

KERNEL = Kernel("static", True, "octavo-torch's operations, attention and top-k in shapes that follow no value", True)

_PROGRAMS = "128"


def probe() -> Probe:
    """Whether torch-xla is here with the torch it was built for, without importing either."""
    if importlib.util.find_spec("torch_xla") is None:
        return Probe(False, "torch-xla is not installed.", remedy=_REMEDY)
    torch, torch_xla = importlib.metadata.version("torch"), importlib.metadata.version("torch-xla")
    if _minor(torch) != _minor(torch_xla):
        reason = f"torch-xla {torch_xla} loads with torch {_minor(torch_xla)} only, and torch {torch} is installed."
        return Probe(False, reason, remedy=_REMEDY)
    return Probe(True, f"torch-xla {torch_xla} with torch {torch}", kernels=(KERNEL,))


def open_torch_xla(config: DeviceConfig) -> Device:
    # A process has 65,530 mappings of memory, of which a tiny model's step takes 230 on a host: torch-xla would keep
    # 2,048 programs, and crash before.
    os.environ.setdefault("XLA_COMPILATION_CACHE_SIZE", _PROGRAMS)
    from octavo_torch_xla.device import TorchXlaDevice

    return TorchXlaDevice(config)


_REMEDY = "python backends/xla/torch-xla/check.py --environment"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "XLA through torch-xla: octavo-torch's operations, in an environment with torch 2.9"
    return [Backend("xla:torch", 1, summary, probe, open_torch_xla, priority=0)]
