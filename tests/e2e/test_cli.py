"""The commands that need no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def octavo(*arguments: str, code: int = 0, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `path` is a folder of further packages."""
    ended = subprocess.run(
        [sys.executable, "-m", "octavo_server", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})},
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def test_generate_answers_and_reports_as_json() -> None:
    asked = ("generate", "demo", "--chat", "--prompt", "What is the capital of France?", "--kv-cache-memory", "64MiB")
    assert octavo(*asked).stdout == "The capital of France is Paris.\n"
    result = json.loads(octavo(*asked, "--json").stdout)
    assert result["text"] == "The capital of France is Paris."
    assert result["completion_tokens"] == len(result["token_ids"]) == 8
    assert result["finish_reason"] == "stop"


def test_generate_refuses_wrong_values_before_it_loads_anything() -> None:
    assert (
        "temperature must be at least 0"
        in octavo("generate", "/no/such/model", "--prompt", "a", "--temperature", "-1", code=2).stderr
    )


def test_backends_lists_what_is_installed() -> None:
    found = json.loads(octavo("backends", "--json").stdout)
    names = {backend["name"]: backend for backend in found["backends"]}
    assert names["reference"]["available"]
    assert {"package", "version", "api_version", "reason", "kernels"} <= set(names["reference"])
    assert "reference: available" in octavo("backends").stdout


def install(path: Path, name: str, code: str) -> None:
    """A package with one plugin, as an installer would lay it out."""
    (path / f"{name}.py").write_text(code)
    metadata = path / f"{name}-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (metadata / "entry_points.txt").write_text(f"[octavo.backends]\n{name} = {name}\n")


def test_a_broken_plugin_is_listed_with_its_traceback_and_the_others_stay(tmp_path: Path) -> None:
    install(tmp_path, "broken", "import a_framework_that_is_not_there\n")
    text = octavo("backends", path=tmp_path).stdout
    assert "broken: cannot be used" in text
    assert "package broken 1.5" in text
    assert "| ModuleNotFoundError: No module named 'a_framework_that_is_not_there'" in text
    assert "Traceback (most recent call last)" in text
    assert "reference: available" in text
    (failure,) = json.loads(octavo("backends", "--json", path=tmp_path).stdout)["failures"]
    assert "a_framework_that_is_not_there" in failure["traceback"]


def test_a_plugin_of_a_later_contract_is_refused_with_a_sentence(tmp_path: Path) -> None:
    install(
        tmp_path,
        "later",
        "from octavo.backend.hooks import Backend, Probe, hookimpl\n"
        "@hookimpl\n"
        "def octavo_backends():\n"
        "    return [Backend('later', 99, 'from the future', lambda: Probe(True, 'fine'), None)]\n",
    )
    assert "version 99 of the backend contract" in octavo("backends", path=tmp_path).stdout
    refusal = octavo("check", "demo", "--backend", "later", code=2, path=tmp_path).stderr
    assert "Backend 'later' of package later cannot be used" in refusal


def test_check_says_what_would_run() -> None:
    plan = json.loads(octavo("check", "demo", "--json", "--kv-cache-memory", "64MiB", "--backend", "reference").stdout)
    assert (plan["backend"], plan["architecture"]) == ("reference", "LlamaForCausalLM")
    assert plan["num_blocks"] > 0
    assert "KV cache:" in octavo("check", "demo", "--kv-cache-memory", "64MiB").stdout


def test_check_names_the_largest_context_that_fits() -> None:
    ended = octavo("check", "demo", "--kv-cache-memory", "64MiB", "--max-model-len", "8000", code=2)
    assert "the largest value that fits" in ended.stderr


def test_help_lists_every_command() -> None:
    text = octavo("--help").stdout
    for name in ("serve", "generate", "check", "backends", "bench"):
        assert name in text
