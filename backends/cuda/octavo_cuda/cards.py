"""NVIDIA's cards: what they need, and which of them the kernels run on. Imports torch only when it looks at a card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from octavo_torch.gpu.probe import Card, Library, Requirements, missing_module

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16 and asynchronous copies."""

_NODES = ("/dev/nvidia*", "/dev/nvhost-*", "/dev/dxg")  # of the driver; on Jetson; under Windows
_DRIVER = Path("/proc/driver/nvidia/version")


def missing_hardware() -> str:
    """A sentence where no driver is loaded, or ""."""
    if any(glob(pattern) for pattern in _NODES):
        return ""
    return "No NVIDIA driver is loaded: there is no /dev/nvidiactl (nvidia-smi would show the card)."


def cards() -> Sequence[Card]:
    """The cards that torch sees. Raises RuntimeError with the driver's own words, one that is too old among them."""
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]
    return [_card(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]


def driver_version() -> str:
    """Of the loaded driver, "580.159.03"; "" where it does not say."""
    try:
        found = re.search(r"\b\d{3,}(\.\d+)+", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found.group() if found else ""


def _card(found: object) -> Card:
    name, capability = str(found.name), (int(found.major), int(found.minor))  # type: ignore[attr-defined]  # torch's
    lacks = ""
    if capability < LEAST_CAPABILITY:
        lacks = (
            f"{name} has compute capability {capability[0]}.{capability[1]}; the kernels need "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Ampere) or later."
        )
    return Card(name, f"sm_{capability[0]}{capability[1]}", lacks)


REQUIREMENTS = Requirements(
    toolkit="cuda",
    toolkit_name="CUDA",
    install="install torch for CUDA, as https://pytorch.org/get-started/locally says",
    hardware=missing_hardware,
    cards=cards,
    libraries=(Library("flashinfer", lambda: missing_module("flashinfer", "pip install flashinfer-python")),),
)
