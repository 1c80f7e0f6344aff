"""Every compilation is known: counted, logged, seen by whoever waits for the device, and kept where its device says."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.backend import DeviceConfig, DType, KVCache, KVLayout
from octavo.backend.discovery import open_device
from octavo_conformance.oracles.models import ModelSpec, tiny_model
from octavo_xla.eager import EagerOps
from octavo_xla.ops import XlaOps


@pytest.fixture
def device() -> Any:
    return open_device(DeviceConfig(backend="xla", options={"cache": "off", "host_devices": "2"})).device


def _cache(device: Any) -> KVCache:
    cache: KVCache = device.allocate_kv(KVLayout(2, 2, 16, 16, DType.FLOAT32), 4)
    return cache


def test_operations_outside_of_steps_are_counted_and_logged_by_name(
    device: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kv, counts = _cache(device), []
    with caplog.at_level(logging.INFO, "octavo_xla"):
        for count in (8, 8, 16, 16):
            blocks = device.upload(np.zeros(count, np.int32))
            kv = device.ops.copy_blocks(kv, blocks, blocks)
            counts.append(device.compilations.count)
    assert counts == [1, 1, 2, 2]
    assert [record.message.split(" in ")[0] for record in caplog.records] == [
        f"Program {number} (copy_blocks outside of a step) compiled" for number in (1, 2)
    ]


def test_a_device_says_that_it_compiles_while_it_does(device: Any) -> None:
    class Watched(XlaOps):
        def copy_blocks(self, kv: KVCache, source: Any, target: Any) -> KVCache:
            seen.append(device.compiling)
            if len(source) == 1:
                raise ValueError("one block")
            return super().copy_blocks(kv, source, target)

    seen: list[bool] = []
    ops = EagerOps(Watched(), device.mesh, device.compilations)
    kv = _cache(device)
    assert not device.compiling
    one, two = (device.upload(np.zeros(count, np.int32)) for count in (1, 2))
    ops.copy_blocks(kv, two, two)
    assert not device.compiling
    with pytest.raises(ValueError, match="one block"):
        ops.copy_blocks(_cache(device), one, one)
    assert not device.compiling
    assert seen == [True, True]


def test_each_device_keeps_its_programs_in_its_own_folder_or_nowhere(tmp_path: Path) -> None:
    model, environment = str(tiny_model(ModelSpec("llama", "tied")).directory), tmp_path / "environment"
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, model, str(tmp_path)], capture_output=True, text=True, timeout=240, check=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(environment)},
    )  # fmt: skip
    first, off, second, again = json.loads(ended.stdout.splitlines()[-1])
    assert [each["read"] for each in (first, off, second, again)] == [0, 0, 0, again["count"]]
    assert (first["a"] > 0, first["b"]) == (True, 0)
    assert (off["a"], off["b"]) == (first["a"], 0)
    assert (second["a"], second["b"]) == (first["a"], first["a"])
    assert (again["a"], again["b"]) == (first["a"], first["a"])
    assert not list(environment.rglob("*-cache"))


_PROGRAM = """
import json, sys
from pathlib import Path
from octavo import LLM, SamplingParams
folder, done = Path(sys.argv[2]), []
for name in ("a", "off", "b", "a"):
    cache = name if name == "off" else str(folder / name)
    llm = LLM(sys.argv[1], backend="xla", dtype="float32", max_model_len=64, kv_cache_memory="1MiB", max_num_seqs=8,
              warm_up_seconds=0, backend_options={"cache": cache})
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
    compilations = llm.engine._runner._device.compilations
    files = {each: len(list((folder / each).rglob("*-cache"))) for each in ("a", "b")}
    done.append({"count": compilations.count, "read": compilations.read, **files})
    llm.close()
print(json.dumps(done))
"""
