"""AMD's cards: what they need, and which of them the kernels run on. Imports torch only when it looks at a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octavo_torch.gpu.probe import Card, Library, Requirements

CDNA = ("gfx90a", "gfx942", "gfx950")
RDNA = ("gfx11", "gfx12")
"""The beginnings of architectures of RDNA 3 and 4."""

_NODES = (Path("/dev/kfd"), Path("/dev/dxg"))  # of the driver; under Windows


def missing_hardware() -> str:
    """A sentence where no driver is loaded, or ""."""
    if any(node.exists() for node in _NODES):
        return ""
    return "No AMD GPU driver is loaded: there is no /dev/kfd (rocm-smi would show the card)."


def cards() -> Sequence[Card]:
    """The cards that torch sees. Raises RuntimeError with the driver's own words."""
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's build for ROCm answers to the name of CUDA
    return [_card(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]


def missing_aiter() -> str:
    """Why AITER cannot be used here, or ""."""
    from octavo_rocm import aiter

    return aiter.missing_aiter()


def _card(found: object) -> Card:
    name, arch = str(found.name), str(found.gcnArchName).partition(":")[0]  # type: ignore[attr-defined]  # torch's
    known = arch in CDNA or arch.startswith(RDNA)
    lacks = "" if known else f"{name} is a {arch}; the kernels run on {', '.join(CDNA)}, gfx11xx and gfx12xx."
    return Card(name, arch, lacks)


REQUIREMENTS = Requirements(
    toolkit="hip",
    toolkit_name="ROCm",
    install="install torch for ROCm, as https://pytorch.org/get-started/locally says",
    hardware=missing_hardware,
    cards=cards,
    libraries=(Library("aiter", missing_aiter),),
)
