"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor the kernels until asked to."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl
from octavo_torch.gpu import probe as probing


def probe() -> Probe:
    """What would run here; torch is imported only where a driver is loaded."""
    from octavo_rocm.cards import REQUIREMENTS

    return probing.probe(REQUIREMENTS)


def open_rocm(config: DeviceConfig) -> Device:
    from octavo_rocm.device import VENDOR
    from octavo_torch.gpu.vendor import open_card

    return open_card(VENDOR, config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "AMD GPUs (CDNA 2 to 4, RDNA 3 and 4): Triton kernels, decode steps as HIP graphs"
    # The interpreter is for tests: nobody is served by it unless they ask for it by name.
    return [Backend("rocm", 1, summary, probe, open_rocm, priority=0 if probing.interpreting() else 100)]
