"""The plugin: every wrong backend, and the right one that is the control."""

from __future__ import annotations

from octavo.backend import Backend, Device, DeviceConfig, hookimpl
from octavo_wrong.catalogue import FAULTS
from octavo_wrong.fault import probe

CONTROL = "wrong-nothing"


def open_control(config: DeviceConfig) -> Device:
    """The right device, with all that some wrong one claims."""
    from octavo_wrong.control import Control

    return Control(config, CONTROL)


@hookimpl
def octavo_backends() -> list[Backend]:
    control = Backend(CONTROL, 1, "right: the control of the trial", probe, open_control, priority=-1)
    return [control, *(fault.backend() for fault in FAULTS)]
