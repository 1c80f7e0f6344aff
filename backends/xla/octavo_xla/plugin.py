"""The plugin: found through the entry point `octavo.backends`, as any third party's is."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Probe, hookimpl
from octavo_xla.platforms import Platform, default_platform


def probe() -> Probe:
    """What would run here; jax is not imported."""
    from octavo_xla import probing

    return probing.probe()


def open_xla(config: DeviceConfig) -> Device:
    from octavo_xla.device import XlaDevice

    return XlaDevice(config)


@hookimpl
def octavo_backends() -> list[Backend]:
    summary = "XLA through JAX: TPUs with Pallas kernels; CPUs and GPUs with plain XLA operations"
    # On a host alone the cpu backend is the faster one: "auto" takes this one where there is a TPU.
    priority = 100 if default_platform() is Platform.TPU else 5
    return [Backend("xla", 1, summary, probe, open_xla, priority=priority)]
