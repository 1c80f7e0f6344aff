"""NVIDIA's cards as a device."""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType

import torch

from octavo_cuda.cards import cards, driver_version
from octavo_torch.gpu.kernel_choice import KernelChoice
from octavo_torch.gpu.runtime import Properties
from octavo_torch.gpu.vendor import Vendor, choose_card
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.targets import TARGETS


def properties(index: int) -> Properties:
    """Of card `index`. Raises as `Vendor.properties` says."""
    card = choose_card("cuda", cards(), index)
    found = torch.cuda.get_device_properties(index)
    return Properties(
        name=card.name,
        arch=card.arch,
        driver=driver_version() or f"CUDA {torch.version.cuda}",
        processors=found.multi_processor_count,
        # What a program gets unless it asks for more is a fifth of what it may have.
        shared_memory=getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block),
        warp_size=32,
    )


def flashinfer(runtime: KernelRuntime) -> KernelChoice:
    from octavo_cuda.flashinfer import FlashInferKernels

    return FlashInferKernels(runtime)


VENDOR = Vendor(
    backend="cuda",
    kind="cuda",
    generator="cuda",
    properties=properties,
    tuning=files("octavo_cuda") / "tuning.toml",
    stand_in=TARGETS["sm_90"],
    libraries=MappingProxyType({"flashinfer": flashinfer}),
)
