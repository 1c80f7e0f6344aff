"""The facts without which a number means nothing: the machine, the versions, the command, the date."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime

import psutil

from octavo.config import EngineConfig
from octavo.host import package_versions, processor_name
from octavo.loading import EngineInfo

_PACKAGES = (
    "octavo-core",
    "octavo-server",
    "octavo-cpu",
    "octavo-torch",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
)


def record(
    benchmark: str, info: EngineInfo, threads: int, workload: dict[str, object], results: dict[str, object]
) -> dict[str, object]:
    """One benchmark's JSON object; `workload` and `results` are the benchmark's own."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["octavo", *sys.argv[1:]],
        "host": host_facts(),
        "versions": versions(),
        "engine": {**engine_facts(info), "threads": threads},
        "workload": workload,
        "results": results,
    }


def host_facts() -> dict[str, object]:
    return {
        "cpu": processor_name(),
        "cores": psutil.cpu_count(logical=False),
        "usable_cpus": usable_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],  # a busy machine measures itself
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, where they are installed."""
    return {"python": platform.python_version(), **package_versions(_PACKAGES)}


def engine_facts(info: EngineInfo) -> dict[str, object]:
    return {
        "model": info.model,
        "architecture": info.architecture,
        "backend": info.backend,
        "device": info.device,
        "kernel": info.kernel,
        "dtype": info.dtype,
        "kv_cache_dtype": info.kv_cache_dtype,
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
        "weights_bytes": info.weights_bytes,
    }


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(config: EngineConfig) -> int:
    """The threads asked for, or one a physical core as far as this process may use them."""
    return config.threads or min(usable_cpus(), psutil.cpu_count(logical=False) or usable_cpus())
