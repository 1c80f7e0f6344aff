"""What runs: the card, its driver, the versions, the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu.part import Bench, Measurement
from benchmarks.gpu.scale import Scale
from octavo.host import package_versions
from octavo_server.bench.facts import host_facts

_PACKAGES = (
    "octavo-core", "octavo-torch", "octavo-cuda", "octavo-rocm", "octavo-xpu", "numpy", "torch", "triton",
    "transformers", "tokenizers", "flashinfer-python", "flash-attn", "aiter",
)  # fmt: skip


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    yield Measurement("facts", _facts, limit=30.0)


def _facts(bench: Bench) -> dict[str, Any]:
    info, memory = bench.device.info, bench.device.memory()
    return {
        "backend": info.backend,
        "device": info.name,
        "arch": info.arch,
        "driver": info.driver,
        "kernel": info.kernel,
        "notes": list(info.notes),
        "memory": asdict(memory),
        "card": _card(bench.torch_device),
        "versions": {"python": platform.python_version(), **package_versions(_PACKAGES)},
        "runtime": {"cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None)},
        "host": host_facts(),
    }


def _card(device: torch.device) -> dict[str, Any] | None:
    """What torch says of the card; None on a host."""
    if device.type == "cpu":
        return None
    found = torch.get_device_module(device).get_device_properties(device)
    names = ("name", "total_memory", "multi_processor_count", "L2_cache_size", "max_compute_units")
    return {name: getattr(found, name) for name in names if hasattr(found, name)}
