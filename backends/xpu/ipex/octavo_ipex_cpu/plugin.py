"""The plugin: found through the entry point `octavo.backends`. Imports neither torch nor IPEX until asked to."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl


def probe() -> Probe:
    from octavo_xpu.ipex import Platform, ipex_kernel

    kernel = ipex_kernel(Platform.CPU)
    return Probe(kernel.available, kernel.reason, kernels=(kernel,))


def open_ipex_cpu(config: DeviceConfig) -> Device:
    from octavo_ipex_cpu.device import IpexCpuDevice

    return IpexCpuDevice(config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "IPEX's CPU platform, to check the xpu backend's IPEX kernels"
    return [Backend("ipex-cpu", 1, summary, probe, open_ipex_cpu, priority=0)]
