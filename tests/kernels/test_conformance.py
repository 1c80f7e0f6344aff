"""The kernels of the three GPU backends held to the contract, as tuned for one architecture of each vendor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_torch.kernels.catalog import CATALOG

OPERATIONS = {kernel.reference.__name__ for kernel in CATALOG}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["cuda", "rocm", "xpu"])
def test_operations_are_right_under_the_interpreter(backend: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["conformance", "run", "--backend", backend, "--level", "ops", "--quick", "--jobs", "2"]
    command += ["--patience", "10"]  # the interpreter is slow, and what else runs beside it is not known
    ended = subprocess.run(
        [sys.executable, "-m", "octavo_server", *command, "--report", str(report)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdicts: dict[str, set[str]] = {}
    for result in json.loads(report.read_text())["results"]:
        verdicts.setdefault(result["verdict"], set()).add(result["case"].split("/")[1])
    assert verdicts["passed"] >= OPERATIONS
    assert "unsupported" not in verdicts  # what is not claimed is not run: the claims that matter are held here
