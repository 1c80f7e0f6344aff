"""The kernels of the three GPU backends held to the contract, as tuned for one architecture of each vendor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_torch.kernels.catalog import CATALOG

OPERATIONS = {kernel.reference.__name__ for kernel in CATALOG}
SHARES = {"cuda": "float32", "rocm": "bfloat16", "xpu": "float16"}
"""The dtype in which each backend goes through all operations in every run of the tests."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", sorted(SHARES))
def test_operations_are_right_under_the_interpreter(backend: str, tmp_path: Path) -> None:
    # What the sampler alone computes it computes in float32, on every backend.
    verdicts = conformance(backend, tmp_path, "--case", f"ops/*/{SHARES[backend]}/* ops/probability_units/*")
    assert verdicts["passed"] >= OPERATIONS


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", sorted(SHARES))
def test_operations_are_right_in_every_dtype(backend: str, tmp_path: Path) -> None:
    verdicts = conformance(backend, tmp_path)
    assert verdicts["passed"] >= OPERATIONS


def conformance(backend: str, folder: Path, *options: str) -> dict[str, set[str]]:
    """The operations by the verdicts of their quick cases, none of which failed."""
    report = folder / "report.json"
    command = ["conformance", "run", "--backend", backend, "--level", "ops", "--quick", "--jobs", "2", *options]
    command += ["--patience", "10"]  # the interpreter is slow, and what else runs beside it is not known
    ended = subprocess.run(
        [sys.executable, "-m", "octavo_server", *command, "--report", str(report)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdicts: dict[str, set[str]] = {}
    for result in json.loads(report.read_text())["results"]:
        verdicts.setdefault(result["verdict"], set()).add(result["case"].split("/")[1])
    return verdicts
