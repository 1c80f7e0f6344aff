"""AMD's cards as a device."""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType

import torch

from octavo_rocm.cards import cards
from octavo_torch.gpu.kernel_choice import KernelChoice
from octavo_torch.gpu.runtime import Properties
from octavo_torch.gpu.vendor import Vendor, choose_card
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.targets import TARGETS


def properties(index: int) -> Properties:
    """Of card `index`. Raises as `Vendor.properties` says."""
    card = choose_card("rocm", cards(), index)
    found = torch.cuda.get_device_properties(index)
    return Properties(
        name=card.name,
        arch=card.arch,
        driver=f"ROCm {torch.version.hip}",
        processors=found.multi_processor_count,
        shared_memory=found.shared_memory_per_block,
        warp_size=found.warp_size,
    )


def aiter(runtime: KernelRuntime) -> KernelChoice:
    from octavo_rocm.aiter import AiterKernels

    return AiterKernels(runtime)


VENDOR = Vendor(
    backend="rocm",
    kind="cuda",  # torch's build for ROCm answers to the name of CUDA
    generator="hip",
    properties=properties,
    tuning=files("octavo_rocm") / "tuning.toml",
    stand_in=TARGETS["gfx942"],
    libraries=MappingProxyType({"aiter": aiter}),
)
