"""`octavo backends` and `octavo check` on a machine without the hardware, and where Triton interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARDWARE = {
    "cuda": ("No NVIDIA driver is loaded: there is no /dev/nvidiactl", "CUDA"),
    "rocm": ("No AMD GPU driver is loaded: there is no /dev/kfd", "ROCm"),
    "xpu": ("No Intel GPU driver is loaded: there is no /dev/dri/renderD*", "XPU"),
}
NODES = {"cuda": "nvidiactl", "rocm": "kfd", "xpu": "dri"}
here = pytest.mark.skipif(
    any((Path("/dev") / node).exists() for node in NODES.values()), reason="this machine has a card, which is found"
)


def octavo(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "octavo_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, **variables}, check=False)


@pytest.fixture(scope="module")
def backends() -> dict[str, Any]:
    return {found["name"]: found for found in json.loads(octavo("backends", "--json").stdout)["backends"]}


@here
@pytest.mark.parametrize("backend", HARDWARE)
def test_backends_says_what_is_missing(backends: dict[str, Any], backend: str) -> None:
    import torch

    hardware, toolkit = HARDWARE[backend]
    found = backends[backend]
    assert not found["available"]
    assert hardware in found["reason"]
    assert "Install the driver, or choose another backend (--backend cpu)." in found["reason"]
    if torch.version.cuda is torch.version.hip is None:
        assert f"torch {torch.__version__} is a build for the CPU only, not for {toolkit}." in found["reason"]
        assert found["remedy"] == (
            f"pip uninstall torch, then install torch for {toolkit}, as https://pytorch.org/get-started/locally says"
        )
    assert [kernel["name"] for kernel in found["kernels"]][:2] == ["triton", "torch"]
    assert not any(kernel["available"] or kernel["selected"] for kernel in found["kernels"])
    assert found["priority"] == 100


@here
@pytest.mark.parametrize("backend", HARDWARE)
def test_check_refuses_with_the_same_sentence_and_no_traceback(backends: dict[str, Any], backend: str) -> None:
    ended = octavo("check", "--backend", backend)
    assert ended.returncode != 0
    said = " ".join((ended.stdout + ended.stderr).split())
    assert f"Backend '{backend}' is not available here: {' '.join(backends[backend]['reason'].split())}" in said
    assert "Traceback" not in said


def test_the_interpreter_is_offered_and_chosen_only_by_name() -> None:
    pytest.importorskip("triton")
    listed = octavo("backends", "--json", TRITON_INTERPRET="1")
    found = {entry["name"]: entry for entry in json.loads(listed.stdout)["backends"]}
    for backend in HARDWARE:
        assert found[backend]["available"]
        assert found[backend]["priority"] == 0
        assert "interpreter" in found[backend]["reason"]
    assert "cpu: available, chosen by --backend auto" in octavo("backends", TRITON_INTERPRET="1").stdout


def test_the_interpreter_refuses_a_vendors_own_kernel_with_the_reason() -> None:
    pytest.importorskip("triton")
    ended = octavo("check", "--backend", "rocm", "--kernel", "aiter", TRITON_INTERPRET="true")
    assert ended.returncode != 0
    said = " ".join((ended.stdout + ended.stderr).split())
    assert "Kernel 'aiter' of backend 'rocm' is not available here: The interpreter runs Triton's kernels only" in said
    assert "unset TRITON_INTERPRET" in said
