"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor the kernels until asked to."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl
from octavo_torch.gpu import probe as probing


def probe() -> Probe:
    """What would run here; torch is imported only where a driver is loaded."""
    from octavo_cuda.cards import REQUIREMENTS

    return probing.probe(REQUIREMENTS)


def open_cuda(config: DeviceConfig) -> Device:
    from octavo_cuda.device import VENDOR
    from octavo_torch.gpu.vendor import open_card

    return open_card(VENDOR, config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "NVIDIA GPUs from compute capability 8.0 on: Triton kernels, decode steps as CUDA graphs"
    # The interpreter is for tests: nobody is served by it unless they ask for it by name.
    return [Backend("cuda", 1, summary, probe, open_cuda, priority=0 if probing.interpreting() else 100)]
