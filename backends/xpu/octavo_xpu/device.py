"""Intel's cards as a device."""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType

import torch

from octavo_torch.gpu.kernel_choice import KernelChoice
from octavo_torch.gpu.runtime import Properties
from octavo_torch.gpu.vendor import Vendor, choose_card
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.targets import TARGETS
from octavo_xpu.cards import cards


def properties(index: int) -> Properties:
    """Of card `index`. Raises as `Vendor.properties` says."""
    card = choose_card("xpu", cards(), index)
    found = torch.xpu.get_device_properties(index)
    return Properties(
        name=card.name,
        arch=card.arch,
        driver=found.driver_version,
        processors=found.gpu_subslice_count,
        shared_memory=getattr(found, "local_mem_size", TARGETS["pvc"].shared_memory),  # told since torch 2.11
        warp_size=max(size for size in found.sub_group_sizes if size <= 32),
    )


def ipex(runtime: KernelRuntime) -> KernelChoice:
    from octavo_xpu.ipex_kernels import IpexKernels

    return IpexKernels(runtime)


VENDOR = Vendor(
    backend="xpu",
    kind="xpu",
    generator="xpu",
    properties=properties,
    tuning=files("octavo_xpu") / "tuning.toml",
    stand_in=TARGETS["pvc"],
    libraries=MappingProxyType({"ipex": ipex}),
)
