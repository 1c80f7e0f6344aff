"""The platforms that XLA compiles for, and which of them are on this machine; told without importing jax."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

_GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")
_DEV = Path("/dev")
_PCI = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"


class Platform(str, Enum):
    """A platform, by jax's name of it."""

    CPU = "cpu"
    GPU = "gpu"
    TPU = "tpu"


def missing(platform: Platform) -> tuple[str, str]:
    """What a platform lacks here, as a sentence, and the command that installs it where one does; "" for nothing."""
    return _MISSING[platform]()


def default_platform() -> Platform:
    """The best platform of this machine. Where JAX_PLATFORMS is set, the first of those it names that is here; the
    first of all where none is.
    """
    named = [_NAMES[name] for name in map(str.strip, os.environ.get("JAX_PLATFORMS", "").split(",")) if name in _NAMES]
    candidates = named or [Platform.TPU, Platform.GPU, Platform.CPU]
    return next((platform for platform in candidates if not missing(platform)[0]), candidates[0])


def _no_cpu() -> tuple[str, str]:
    return "", ""


def _no_gpu() -> tuple[str, str]:
    if not any((_DEV / name).exists() for name in ("nvidiactl", "kfd")):
        return "There is no GPU driver on this machine.", ""
    if not any(find_spec(name) for name in _GPU_PLUGINS):
        return "jax has no plugin for the GPU of this machine.", "pip install 'jax[cuda13]'"
    return "", ""


def _no_tpu() -> tuple[str, str]:
    # libtpu asks for a chip that is not there for minutes; the kernel's files say it at once. VFIO hands on any device.
    handed_on = any(_DEV.glob("vfio/[0-9]*")) and any(_vendor(device) == _GOOGLE for device in _PCI.glob("*"))
    if not (any(_DEV.glob("accel[0-9]*")) or handed_on):
        return "There is no TPU on this machine.", ""
    if not find_spec("libtpu"):
        return "libtpu, the TPU's driver, is not installed.", "pip install 'octavo-xla[tpu]'"
    return "", ""


def _vendor(device: Path) -> str:
    """Of a PCI device, by its number; "" where it cannot be read."""
    try:
        return (device / "vendor").read_text().strip()
    except OSError:
        return ""


_NAMES: Mapping[str, Platform] = {"cuda": Platform.GPU, "rocm": Platform.GPU} | {each.value: each for each in Platform}

_MISSING: Mapping[Platform, Callable[[], tuple[str, str]]] = {
    Platform.CPU: _no_cpu,
    Platform.GPU: _no_gpu,
    Platform.TPU: _no_tpu,
}
