"""The kernels of the three GPU backends held to the contract, as tuned for one architecture of each vendor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_torch.kernels.catalog import CATALOG

OPERATIONS = {kernel.reference.__name__ for kernel in CATALOG}


@pytest.mark.parametrize("backend", ["rocm", "xpu"])
def test_operations_in_bfloat16_are_right_under_the_interpreter(backend: str, tmp_path: Path) -> None:
    passed, unsupported = run(backend, "--case", "ops/*/bfloat16/*", report=tmp_path / "report.json")
    assert passed >= OPERATIONS
    assert not unsupported


@pytest.mark.timeout(1200)
def test_operations_are_right_under_the_interpreter(tmp_path: Path) -> None:
    check_whole("cuda", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ["rocm", "xpu"])
def test_operations_in_every_dtype_are_right_under_the_interpreter(backend: str, tmp_path: Path) -> None:
    check_whole(backend, tmp_path)


def check_whole(backend: str, folder: Path) -> None:
    passed, unsupported = run(backend, report=folder / "report.json")
    assert passed >= OPERATIONS
    # What is not claimed is not run, so the claims that matter are held here: only more than one card is not claimed.
    assert unsupported <= {"all_reduce", "all_gather"}


def run(backend: str, *selection: str, report: Path) -> tuple[set[str], set[str]]:
    """Operations with a case that passed, and with one that is not claimed; all others passed too."""
    command = ["conformance", "run", "--backend", backend, "--level", "ops", "--quick", "--jobs", "2"]
    command += ["--patience", "4"]  # the interpreter is slow, and what else runs beside it is not known
    ended = subprocess.run(
        [sys.executable, "-m", "octavo_server", *command, *selection, "--report", str(report)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdicts: dict[str, set[str]] = {}
    for result in json.loads(report.read_text())["results"]:
        verdicts.setdefault(result["verdict"], set()).add(result["case"].split("/")[1])
    return verdicts["passed"], verdicts.get("unsupported", set())
