"""Intel's cards: what they need, and what they are. Imports torch only when it looks at a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from octavo_torch.gpu.host_compiler import CXX
from octavo_torch.gpu.probe import Card, Library, Requirements

INTEL = "0x8086"
"""Intel's number on the PCI bus."""

_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"Data Center GPU Max": "pvc", "B580": "bmg", "B570": "bmg", "B60": "bmg", "B50": "bmg", "Arc(TM) A": "acm"}
)
"""By a part of the card's name; the driver's own numbers differ from one of its versions to the next."""


def missing_hardware(root: Path = Path("/")) -> str:
    """A sentence where no driver for an Intel GPU is loaded, or ""."""
    if (root / "dev/dxg").exists():  # under Windows
        return ""
    for node in (root / "dev/dri").glob("renderD*"):
        vendor = root / "sys/class/drm" / node.name / "device/vendor"
        if vendor.is_file() and vendor.read_text(encoding="utf-8").strip() == INTEL:
            return ""
    return "No Intel GPU driver is loaded: there is no /dev/dri/renderD* of an Intel card (xpu-smi would show it)."


def cards() -> Sequence[Card]:
    """The cards that torch sees. Raises RuntimeError with the driver's own words."""
    import torch

    torch.xpu.init()
    return [_card(torch.xpu.get_device_properties(index)) for index in range(torch.xpu.device_count())]


def missing_ipex() -> str:
    """Why intel-extension-for-pytorch cannot be used here, or ""."""
    from octavo_xpu.ipex import ipex_kernel

    kernel = ipex_kernel()
    return "" if kernel.available else kernel.reason


def _card(found: object) -> Card:
    name = str(found.name)  # type: ignore[attr-defined]  # torch's
    return Card(name, next((arch for part, arch in _ARCHITECTURES.items() if part in name), "xe"))


REQUIREMENTS = Requirements(
    toolkit="xpu",
    toolkit_name="XPU",
    install="install torch for XPU, as https://pytorch.org/get-started/locally says",
    hardware=missing_hardware,
    cards=cards,
    libraries=(Library("ipex", missing_ipex),),
    compiler=CXX,
)
