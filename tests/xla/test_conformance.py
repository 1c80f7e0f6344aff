"""The XLA backend held to the contract on the host: its plain operations, and the TPU kernels in their interpreter.

All of the suite is `make xla-check`; here is what each run of the tests can afford, each level and each operation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.backend import Ops

OPERATIONS = {name for name in vars(Ops) if not name.startswith("_")}

ON_THE_HOST = (
    "contract/[!ck]* contract/collectives/* contract/compile/mixed "
    "ops/[eglmst]*/float32/* ops/rms_norm/float32/* ops/rotary/float32/* ops/probability_units/float32/* "
    "ops/paged_attention/float32/mix* ops/write_kv/float32/padded ops/rotary_write_kv/float32/halves "
    "ops/copy_blocks/float32/chain step/qwen3/bfloat16/plain,mixed "
    "engine/parity/llama,plain engine/copy_on_write/seeded engine/tensor_parallel/* "
    "invariance/noise/* invariance/repeat/*"
)
INTERPRETED = "ops/paged_attention/float32/mix=[dm]*padded ops/write_kv/float32/padded ops/copy_blocks/float32/swap"


@pytest.mark.timeout(1800)
def test_plain_operations_and_whole_engines_are_right_on_the_host(tmp_path: Path) -> None:
    verdicts = conformance(tmp_path, "xla", ON_THE_HOST)
    assert {case.split("/")[1] for case in verdicts["passed"] if case.startswith("ops/")} == OPERATIONS
    assert {case.split("/")[0] for case in verdicts["passed"]} == {"contract", "ops", "step", "engine", "invariance"}


@pytest.mark.timeout(1800)
def test_the_kernels_of_the_paged_cache_are_right_in_the_interpreter(tmp_path: Path) -> None:
    verdicts = conformance(tmp_path, "pallas-interpreted", INTERPRETED)
    assert {case.split("/")[1] for case in verdicts["passed"]} == {"paged_attention", "write_kv", "copy_blocks"}


def conformance(folder: Path, kernel: str, cases: str) -> dict[str, set[str]]:
    """The quick ones among these cases, by their verdicts; none of them failed."""
    report = folder / "report.json"
    command = ["conformance", "run", "--backend", "xla", "--kernel", kernel, "--quick", "--jobs", "2"]
    command += ["--option", "host_devices=2", "--option", f"cache={folder / 'programs'}", "--case", cases]
    command += ["--patience", "10", "--report", str(report)]  # what else runs beside it is not known
    ended = subprocess.run([sys.executable, "-m", "octavo_server", *command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdicts: dict[str, set[str]] = {}
    for result in json.loads(report.read_text())["results"]:
        verdicts.setdefault(result["verdict"], set()).add(result["case"])
    return verdicts
