"""What a machine is said to lack: each fact by itself, and all of them at once, without importing torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo_torch.gpu import probe as probing
from octavo_torch.gpu.probe import Card, Library, Requirements, TorchBuild, missing_module, probe, torch_build

H200 = Card("NVIDIA H200", "sm_90")
TURING = Card("Tesla T4", "sm_75", lacks="Tesla T4 has compute capability 7.5; the kernels need 8.0 (Ampere) or later.")


def no_cards() -> Sequence[Card]:
    raise AssertionError("cards are looked for only where all else is in place")


INSTALL = "install torch for CUDA"
NEEDS = Requirements(
    toolkit="cuda",
    toolkit_name="CUDA",
    install=INSTALL,
    hardware=lambda: "",
    cards=no_cards,
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets which torch and which modules are found."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    find_spec = importlib.util.find_spec

    def set_up(build: TorchBuild | None, modules: Sequence[str] = ("triton",)) -> None:
        monkeypatch.setattr(probing, "torch_build", lambda: build)

        def find(name: str) -> Any:
            return (object() if name in modules else None) if name in ("triton", "flashinfer") else find_spec(name)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return set_up


NO_DRIVER = "Install the driver, or choose another backend (--backend cpu)."
CUDA_BUILD = TorchBuild("2.11.0+cu130", {"cuda": "13.0"})


def test_no_torch(machine: Any) -> None:
    machine(None)
    found = probe(NEEDS)
    assert (found.available, found.reason) == (False, "PyTorch is not installed.")
    assert found.remedy == INSTALL


@pytest.mark.parametrize(
    ("build", "made_for"),
    [
        (TorchBuild("2.13.0+cpu", {}), "the CPU only"),
        (TorchBuild("2.11.0+rocm7.1", {"hip": "7.1", "rocm": "7.1"}), "ROCm 7.1"),
        (TorchBuild("2.11.0+xpu", {"xpu": "20250301"}), "XPU 20250301"),
    ],
)
def test_a_torch_for_something_else(machine: Any, build: TorchBuild, made_for: str) -> None:
    machine(build)
    found = probe(NEEDS)
    assert found.reason == f"torch {build.version} is a build for {made_for}, not for CUDA."
    assert found.remedy == f"pip uninstall torch, then {INSTALL}"


def test_no_triton(machine: Any) -> None:
    machine(CUDA_BUILD, modules=())
    found = probe(NEEDS)
    assert found.reason == "Triton, the compiler of the kernels, is not installed."
    assert found.remedy == INSTALL, "which brings the Triton that torch requires"


def test_where_only_the_driver_is_missing_there_is_a_way_out(machine: Any) -> None:
    machine(CUDA_BUILD)
    found = probe(replace(NEEDS, hardware=lambda: "No driver."))
    assert (found.reason, found.remedy) == (f"No driver. {NO_DRIVER}", "")


def test_all_that_is_missing_is_said_at_once(machine: Any) -> None:
    machine(None, modules=())
    found = probe(replace(NEEDS, hardware=lambda: "No driver."))
    assert found.reason.startswith(f"No driver. {NO_DRIVER} PyTorch is not installed. Triton")
    assert found.remedy == INSTALL
    assert not any(kernel.available for kernel in found.kernels)


def test_a_driver_that_is_too_old_is_said_in_its_own_words(machine: Any) -> None:
    def cards() -> Sequence[Card]:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Update it.\nMore.")

    machine(CUDA_BUILD)
    found = probe(replace(NEEDS, cards=cards))
    assert not found.available
    assert found.reason.endswith("The NVIDIA driver on your system is too old (found version 11040). Update it.")


def test_a_card_that_is_too_old(machine: Any) -> None:
    machine(CUDA_BUILD)
    found = probe(replace(NEEDS, cards=lambda: [TURING]))
    assert not found.available
    assert found.reason == TURING.lacks
    assert found.devices == ("Tesla T4 (sm_75)",)
    assert probe(replace(NEEDS, cards=lambda: [TURING, H200])).available


def test_no_card_behind_the_driver(machine: Any) -> None:
    machine(CUDA_BUILD)
    assert probe(replace(NEEDS, cards=list)).reason == "torch 2.11.0+cu130 finds no card."


def test_a_machine_with_everything(machine: Any) -> None:
    machine(CUDA_BUILD)
    needs = replace(
        NEEDS, cards=lambda: [H200], libraries=(Library("flashinfer", lambda: missing_module("flashinfer", "get it")),)
    )
    found = probe(needs)
    assert found.available
    assert "NVIDIA H200 (sm_90)" in found.reason
    kernels = {kernel.name: kernel for kernel in found.kernels}
    assert [name for name, kernel in kernels.items() if kernel.selected] == ["triton"]
    assert [name for name, kernel in kernels.items() if kernel.available] == ["triton", "torch"]
    assert kernels["flashinfer"].reason == "flashinfer is not installed: get it"
    machine(CUDA_BUILD, modules=("triton", "flashinfer"))
    assert all(kernel.available for kernel in probe(needs).kernels)


def programs(folder: Path, *names: str) -> str:
    """A PATH of one folder with these programs."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return str(folder)


@pytest.fixture
def bare(machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a card and torch, but no compiler and no headers of Python; the folder they would be in."""
    machine(CUDA_BUILD)
    for variable in ("CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", programs(tmp_path / "bin"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    return tmp_path


WITH_A_CARD = replace(NEEDS, cards=lambda: [H200])


def test_a_card_without_a_compiler_and_headers_is_not_available(bare: Path) -> None:
    found = probe(WITH_A_CARD)
    assert not found.available
    assert "None of gcc, clang is on the PATH, and CC names none." in found.reason
    assert f"There is no {bare / 'Python.h'}." in found.reason
    assert found.remedy == "apt install gcc python3-dev"
    assert not any(kernel.available for kernel in found.kernels)
    (bare / "Python.h").touch()
    assert probe(WITH_A_CARD).remedy == "apt install gcc"
    programs(bare / "bin", "clang")
    assert probe(WITH_A_CARD).available


def test_a_compiler_that_is_named_goes_before_those_on_the_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(bare / "bin", "gcc", "mine")
    (bare / "more").mkdir()
    (bare / "more" / "Python.h").touch()
    monkeypatch.setenv("CPATH", f"{bare / 'none'}{os.pathsep}{bare / 'more'}")
    monkeypatch.setenv("CC", "theirs")
    assert "CC names 'theirs', which is not there." in probe(WITH_A_CARD).reason
    monkeypatch.setenv("CC", "mine")
    assert probe(WITH_A_CARD).available


def test_intels_triton_needs_a_compiler_of_cpp(bare: Path) -> None:
    from octavo_xpu.cards import REQUIREMENTS

    (bare / "Python.h").touch()
    programs(bare / "bin", "gcc")
    needs = replace(WITH_A_CARD, compiler=REQUIREMENTS.compiler)
    assert probe(needs).remedy == "apt install g++"
    programs(bare / "bin", "g++")
    assert probe(needs).available


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "on", "Y"])
def test_the_interpreter_is_available_and_says_what_it_is(
    machine: Any, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    machine(None)
    monkeypatch.setenv("TRITON_INTERPRET", value)
    found = probe(replace(NEEDS, libraries=(Library("flashinfer", lambda: ""),)))
    assert found.available
    assert "interpreter on the host, for tests" in found.reason
    kernels = {kernel.name: kernel for kernel in found.kernels}
    assert [name for name, kernel in kernels.items() if kernel.available] == ["triton"]
    assert set(kernels) == {"triton", "torch", "flashinfer"}
    assert "unset TRITON_INTERPRET" in kernels["flashinfer"].reason


@pytest.mark.parametrize("value", ["", "0", "1", "2", "t", "true", "On", "yes", "y", " 1", "false", "off"])
def test_the_interpreter_is_on_where_triton_has_it_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    knobs = pytest.importorskip("triton.knobs")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert probing.interpreting() is knobs.runtime.interpret


def test_torchs_build_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n\n__all__ = ['cuda']\n__version__ = '2.11.0+cu130'\ndebug = False\n"
        "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
    )
    found = torch_build(tmp_path)
    assert found is not None
    assert found.version == "2.11.0+cu130"
    assert found.made_for == "CUDA 13.0"
    assert "hip" not in found.toolkits


def test_the_torch_that_is_installed_is_told_as_it_tells_itself() -> None:
    import torch

    found = torch_build()
    assert found is not None
    assert found.version == torch.__version__
    assert found.toolkits.get("cuda") == torch.version.cuda


@pytest.mark.parametrize("vendor", ["cuda", "rocm", "xpu"])
def test_looking_for_a_card_that_is_not_there_imports_no_framework(vendor: str) -> None:
    script = (
        f"import sys, octavo_{vendor}.plugin as plugin\n"
        "plugin.octavo_backends()\n"
        "available = plugin.probe().available\n"
        "sys.exit(not available and any(name in sys.modules for name in ('torch', 'triton')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_intels_cards_are_told_by_their_number_on_the_bus(tmp_path: Path) -> None:
    from octavo_xpu.cards import missing_hardware

    assert "/dev/dri/renderD*" in missing_hardware(tmp_path)
    for number, vendor in ((128, "0x10de"), (129, "0x8086")):
        assert missing_hardware(tmp_path)
        (tmp_path / "dev/dri").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"dev/dri/renderD{number}").touch()
        device = tmp_path / f"sys/class/drm/renderD{number}/device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
    assert missing_hardware(tmp_path) == ""
