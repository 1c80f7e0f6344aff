"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor torch-xla until asked to."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl


def probe() -> Probe:
    """Whether torch-xla is here with the torch it was built for, without importing either."""
    if importlib.util.find_spec("torch_xla") is None:
        return Probe(False, "torch-xla is not installed.", remedy="make torch-xla-check")
    torch, torch_xla = importlib.metadata.version("torch"), importlib.metadata.version("torch-xla")
    if _minor(torch) != _minor(torch_xla):
        reason = f"torch-xla {torch_xla} loads with torch {_minor(torch_xla)} only, and torch {torch} is installed."
        return Probe(False, reason, remedy="make torch-xla-check")
    from octavo_torch_xla.kernels import kernels

    return Probe(True, f"torch-xla {torch_xla} with torch {torch}", kernels=kernels())


def open_torch_xla(config: DeviceConfig) -> Device:
    from octavo_torch_xla.device import TorchXlaDevice

    return TorchXlaDevice(config)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "octavo-torch's operations on torch-xla's lazy tensors, to be checked"
    return [Backend("torch-xla", 1, summary, probe, open_torch_xla, priority=0)]
