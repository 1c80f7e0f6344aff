"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor the kernels until asked to."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from octavo.backend import Backend, BackendError, Device, DeviceConfig, Probe, hookimpl


def probe() -> Probe:
    """What would run here, without importing torch."""
    if importlib.util.find_spec("torch") is None:
        return Probe(False, "PyTorch is not installed.", remedy="pip install torch")
    from octavo_cpu.native.isa import choose, kernels
    from octavo_cpu.processor import processor_name

    try:
        choice, available = choose(), kernels()
    except BackendError as error:
        return Probe(False, str(error))
    version = importlib.metadata.version("torch")
    return Probe(
        True,
        f"torch {version} with kernel {choice.isa.value} ({choice.reason})",
        devices=(processor_name(),),
        kernels=available,
    )


def open_cpu(config: DeviceConfig) -> Device:
    from octavo_cpu.device import CpuDevice

    return CpuDevice(config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "PyTorch with native paged-attention and linear kernels; runs anywhere"
    return [Backend("cpu", 1, summary, probe, open_cpu, priority=10)]
