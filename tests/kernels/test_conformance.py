"""The kernels of the three GPU backends held to the contract, as tuned for one architecture of each vendor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_torch.kernels.catalog import CATALOG


@pytest.mark.parametrize("backend", ["cuda", "rocm", "xpu"])
def test_every_operation_is_right_under_the_interpreter(backend: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["conformance", "run", "--backend", backend, "--level", "ops", "--quick", "--jobs", "2"]
    command += ["--patience", "4"]  # the interpreter is slow, and what else runs beside it is not known
    run = subprocess.run(
        [sys.executable, "-m", "octavo_server", *command, "--report", str(report)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(report.read_text())["results"]
    verdicts = {result["verdict"] for result in results}
    assert verdicts <= {"passed", "unsupported"}
    # What is not claimed is not run, so the claims that matter are held here.
    passed = {result["case"].split("/")[1] for result in results if result["verdict"] == "passed"}
    assert {kernel.reference.__name__ for kernel in CATALOG} - {"linear"} <= passed
    unsupported = [result["case"] for result in results if result["verdict"] == "unsupported"]
    assert all("shards" in case or "collectives" in case for case in unsupported), unsupported
