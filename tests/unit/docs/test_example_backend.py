"""The vendor guide's example: found as a plugin, held to its own tests, and it generates what the reference does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from octavo import LLM, SamplingParams
from octavo.backend.discovery import discover

EXAMPLE = Path(__file__).parents[3] / "examples" / "octavo-example-backend"


def test_the_example_is_found_through_its_entry_point(example_installed):
    found = discover().named("example")
    assert (found.package, found.version) == ("octavo-example-backend", "0.1.0")
    assert found.probe().available


def test_finding_the_example_imports_neither_its_device_nor_its_kernels(example_installed):
    discover().named("example").probe()
    assert "octavo_example.plugin" in sys.modules
    assert "octavo_example.device" not in sys.modules


def test_the_examples_own_tests_pass(example_installed):
    """The conformance suite among them: of its quick set, what the example has a device, a matrix and a kernel for."""
    paths = os.pathsep.join(map(str, example_installed))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        EXAMPLE,
        EXAMPLE / "tests",
        "--octavo-backend=example",
        "--octavo-quick",
        "--octavo-case=contract/* ops/linear/* ops/paged_attention/* ops/copy_blocks/*",
    ]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 100


def test_the_example_generates_the_tokens_of_the_reference_backend(example_installed):
    """Two prompts of different lengths: decodes beside prefill chunks, planned by the example's own stage."""
    prompts = ["The capital of France is", "Two, four, six, eight,"]
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)

    def tokens(backend: str) -> list[tuple[int, ...]]:
        llm = LLM(
            "demo", backend=backend, max_model_len=64, kv_cache_memory="64MiB", max_num_seqs=8, max_num_batched_tokens=8
        )
        return [tuple(result.outputs[0].token_ids) for result in llm.generate(prompts, params)]

    expected = tokens("reference")
    assert all(len(output) == 3 for output in expected)
    assert tokens("example") == expected
