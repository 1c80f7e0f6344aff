"""What Octavo finds through the entry point. Importing it must be cheap: no framework, no device."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, Kernel, Probe, hookimpl


def probe() -> Probe:
    """What is on this machine. A real plugin asks its driver here, and never raises."""
    kernels = (
        Kernel("grouped", True, "one sequence at a time, its query heads together", selected=True),
        Kernel("reference", True, "the contract's own operations, slow and exact"),
    )
    return Probe(True, "the example card is always there", devices=("Example card",), kernels=kernels)


def open_example(config: DeviceConfig) -> Device:
    """The device with the asked kernel; "auto" is the one that the probe marks as selected."""
    if config.kernel == "reference":
        from octavo_example.device import ExampleDevice

        return ExampleDevice(config)
    from octavo_example.fast import FastExampleDevice

    return FastExampleDevice(config)


@hookimpl
def octavo_backends() -> list[Backend]:
    # priority 1: "auto" prefers any real backend. api_version is the literal that this plugin was written for.
    return [Backend("example", 1, "a pretended card with 4 GiB of its own", probe, open_example, priority=1)]
