"""Every test runs on every kernel this machine and this build have, torch's own included."""

from __future__ import annotations

import pytest

from octavo.backend import Device, DeviceConfig
from octavo_cpu.native.isa import kernels
from octavo_cpu.plugin import open_cpu

AVAILABLE = [kernel.name for kernel in kernels() if kernel.available]


@pytest.fixture(params=AVAILABLE, scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    return open_cpu(DeviceConfig(kernel=request.param))
