"""Which kernel runs, what is refused, what memory is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.backend import (
    BackendUnavailableError,
    Device,
    DeviceConfig,
    DeviceOutOfMemoryError,
    DType,
    KVLayout,
    UnsupportedError,
)
from octavo_cpu.memory import host_memory
from octavo_cpu.native.isa import VARIABLE, Isa, choose, kernels
from octavo_cpu.plugin import open_cpu, probe


def test_importing_the_plugin_imports_no_framework() -> None:
    script = "import sys, octavo_cpu.plugin as p; p.octavo_backends(); p.probe(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_probe_says_which_kernel_would_run_and_selects_just_that() -> None:
    found = probe()
    assert found.available
    selected = [kernel.name for kernel in found.kernels if kernel.selected]
    assert selected == [choose().isa.value]
    assert selected[0] in found.reason
    assert all(kernel.reason for kernel in found.kernels)


def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert choose().isa is Isa.TORCH
    assert VARIABLE in choose().reason
    assert open_cpu(DeviceConfig()).info.kernel == "torch"


def test_a_kernel_named_in_the_configuration_wins_over_the_environment() -> None:
    assert choose("torch", {VARIABLE: "no such thing"}).isa is Isa.TORCH


def test_an_unknown_kernel_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(BackendUnavailableError, match=r"'neon'.*avx512, avx2, generic, torch"):
        choose("neon")


def test_a_kernel_that_was_not_built_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_cpu.native.isa.library_path", lambda isa: None)
    assert choose().isa is Isa.TORCH
    assert "not built" in choose().reason
    with pytest.raises(BackendUnavailableError, match=r"avx2.*not built.*Those that can: torch"):
        choose("avx2")


def test_a_processor_without_the_instructions_takes_the_generic_build(monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(kernel.name == "generic" and kernel.available for kernel in kernels()):
        pytest.skip("no native kernels were built here")
    monkeypatch.setattr("octavo_cpu.native.isa._processor_level", lambda: 0)
    assert choose().isa is Isa.GENERIC
    with pytest.raises(BackendUnavailableError, match="avx512"):
        choose("avx512")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's OpenMP runtime is another one elsewhere")
def test_the_kernels_share_the_thread_pool_of_torch_and_bring_no_second_one() -> None:
    # A process of its own: other packages of the tests bring runtimes too.
    script = (
        "from octavo.backend import DeviceConfig; from octavo_cpu.plugin import open_cpu\n"
        "print(*open_cpu(DeviceConfig()).info.notes, sep='\\n')\n"
        "print(open('/proc/self/maps').read())\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = {Path(line.split()[-1]).name for line in printed.splitlines() if ".so" in line}
    runtimes = [name for name in loaded if name.startswith(("libgomp", "libomp", "libiomp"))]
    assert len(runtimes) == 1, runtimes
    assert "torch's own" in printed


@pytest.mark.parametrize(
    "config",
    [
        DeviceConfig(index=1),
        DeviceConfig(tensor_parallel_size=2),
        DeviceConfig(threads=0),
        DeviceConfig(options={"graphs": "on"}),
    ],
)
def test_what_one_host_cannot_be_is_refused(config: DeviceConfig) -> None:
    with pytest.raises(UnsupportedError):
        open_cpu(config)


def test_layouts_outside_the_capabilities_are_refused(device: Device) -> None:
    with pytest.raises(UnsupportedError, match="float32, bfloat16"):
        device.allocate_kv(KVLayout(1, 1, 64, 16, DType.FLOAT16), 2)
    with pytest.raises(UnsupportedError, match="blocks of 3 tokens"):
        device.allocate_kv(KVLayout(1, 1, 64, 3, DType.FLOAT32), 2)


def test_a_cache_that_does_not_fit_is_refused_before_memory_is_taken(device: Device) -> None:
    layout = KVLayout(30, 3, 64, 16, DType.FLOAT32)
    blocks = device.memory().total // device.kv_block_bytes(layout) + 1
    with pytest.raises(DeviceOutOfMemoryError, match="are free"):
        device.allocate_kv(layout, blocks)


@pytest.mark.parametrize(("head_size", "block_size"), [(64, 16), (80, 16), (72, 8), (64, 1)])
def test_block_bytes_are_what_allocation_takes(device: Device, head_size: int, block_size: int) -> None:
    layout = KVLayout(2, 3, head_size, block_size, DType.BFLOAT16)
    memories = [getattr(layer, "memory", layer) for layer in device.allocate_kv(layout, 7)]
    taken = sum(memory.numel() * memory.element_size() for memory in memories)
    assert taken == 7 * device.kv_block_bytes(layout)


def test_a_control_groups_limit_bounds_free_memory(tmp_path: Path) -> None:
    group = tmp_path / "service"
    group.mkdir()
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/service/worker\n")
    memory = host_memory(tmp_path, membership)
    assert (memory.free, memory.total) == (400_000, 1_000_000)


def test_an_unlimited_control_group_leaves_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    assert host_memory(tmp_path, membership).total == host_memory(tmp_path, tmp_path / "absent").total


def test_a_build_without_a_compiler_succeeds_and_runs_on_torch(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[4] / "backends" / "cpu"
    tree = tmp_path / "cpu"
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so", "__pycache__"))
    missing = dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), "/bin/false")
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "lib")],
        cwd=tree,
        env=os.environ | missing,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert not list((tmp_path / "lib").rglob("*.so"))
    script = "from octavo_cpu.plugin import probe; p = probe(); assert p.available; print(p.reason)"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={key: value for key, value in os.environ.items() if key != VARIABLE}
        | {"PYTHONPATH": str(tmp_path / "lib")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "kernel torch" in ran.stdout
    assert "not built" in ran.stdout
