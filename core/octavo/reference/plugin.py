"""The plugin: found through the entry point `octavo.backends`, as any third party's is."""

from __future__ import annotations

import platform

import numpy as np

from octavo.backend import Backend, Device, DeviceConfig, Kernel, Probe, hookimpl

KERNEL = "reference"


def probe() -> Probe:
    kernel = Kernel(KERNEL, True, "the contract's own operations on NumPy arrays", selected=True)
    return Probe(True, f"NumPy {np.__version__} runs anywhere", devices=(platform.machine(),), kernels=(kernel,))


def open_reference(config: DeviceConfig) -> Device:
    from octavo.reference.device import ReferenceDevice

    return ReferenceDevice(config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "NumPy, slow and exact: the oracle that other backends are checked against"
    return [Backend("reference", 1, summary, probe, open_reference, priority=0)]
