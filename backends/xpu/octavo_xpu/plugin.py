"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor the kernels until asked to."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl
from octavo_torch.gpu import probe as probing


def probe() -> Probe:
    """What would run here; torch is imported only where there is an Intel GPU."""
    from octavo_xpu.cards import REQUIREMENTS

    return probing.probe(REQUIREMENTS)


def open_xpu(config: DeviceConfig) -> Device:
    from octavo_torch.gpu.vendor import open_card
    from octavo_xpu.device import VENDOR

    return open_card(VENDOR, config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "Intel GPUs (Data Center Max, Arc): Triton kernels through torch.xpu"
    # The interpreter is for tests: nobody is served by it unless they ask for it by name.
    return [Backend("xpu", 1, summary, probe, open_xpu, priority=0 if probing.interpreting() else 100)]
