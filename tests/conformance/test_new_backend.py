"""`octavo new-backend`: what it writes passes the suite; with one line broken it fails, and says where."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from octavo_conformance.expectations import read_expectations
from octavo_conformance.must_pass import ids
from octavo_conformance.new_backend.command import new_backend
from octavo_conformance.new_backend.generate import NewBackendError, generate
from octavo_conformance.new_backend.name import LONGEST_NAME
from octavo_conformance.suite import select

ROOT = Path(__file__).parents[2]
NAME = "my-chip"
LEVELS = ("contract", "ops", "step", "engine")
SOME = " ".join(
    [
        "contract/kv_cache/*",
        "contract/memory/figures",
        "contract/kernels/*",
        "ops/rms_norm/float32/*",
        "ops/linear/float32/*",
        "ops/paged_attention/float32/mix=decode*",
        "ops/paged_attention/float32/mix=chunked",
        "step/llama/float32/*",
        "engine/*",
    ]
)

BROKEN = '''"""Attention with one line too many."""

from dataclasses import replace

from octavo.backend import AttentionMetadata, LayerKV, Ops
from octavo.backend.weights import Array


class MyChipOps(Ops):
    def paged_attention(
        self,
        q: Array,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        meta = replace(meta, positions=meta.positions + 1)  # each token sees the one behind it, too
        return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return generate(NAME, tmp_path)


def installed(package: Path) -> dict[str, str]:
    """The environment in which a package is installed, as an installer would without a network."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    site = package.parent / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (package, site))), "OMP_NUM_THREADS": "1"}


def run(package: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=package, env=environment, capture_output=True, text=True, timeout=500
    )


def pytest_in(package: Path, environment: dict[str, str], pattern: str) -> subprocess.CompletedProcess[str]:
    """The package's own tests, by its own settings, on these cases of the quick set."""
    options = ["-q", "-p", "no:cacheprovider", "--octavo-quick", "--octavo-case", pattern]
    return run(package, environment, "pytest", *options)


def test_the_package_passes_its_own_tests_as_it_was_written(package: Path) -> None:
    chosen = select(pattern=SOME, quick=True)
    assert {case.level.value for case in chosen} == set(LEVELS), "cases of each level take part"
    ran = pytest_in(package, installed(package), SOME)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = int(re.search(r"(\d+) passed", ran.stdout)[1])  # type: ignore[index]
    skipped = re.search(r"(\d+) skipped", ran.stdout)
    assert passed + int(skipped[1] if skipped else 0) == len(chosen)
    assert passed > len(chosen) // 2


def test_one_broken_line_of_its_attention_fails_with_op_shape_error_and_the_command_to_reproduce(package: Path) -> None:
    (package / "octavo_my_chip" / "ops.py").write_text(BROKEN)
    device = package / "octavo_my_chip" / "device.py"
    text = device.read_text()
    text = text.replace(
        "    UnsupportedError,\n)\n", "    UnsupportedError,\n)\nfrom octavo_my_chip.ops import MyChipOps\n", 1
    )
    text = text.replace("    def __init__", "    ops = MyChipOps()\n\n    def __init__", 1)
    device.write_text(text)
    environment = installed(package)

    ran = pytest_in(package, environment, "ops/paged_attention/float32/*")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    message = re.search(
        r"(?P<case>ops/paged_attention/float32/\S+)\n"
        r"\s*paged_attention in float32: NMSE (?P<error>\S+), (?P<allowed>\S+) is allowed \((?P<inputs>.*?)\)\..*?\n"
        r"\s*To reproduce: (?P<command>octavo conformance run .*)\n",
        ran.stdout,
    )
    assert message is not None, ran.stdout
    assert float(message["error"]) > float(message["allowed"])
    assert re.search(r"\d", message["inputs"]), "the shapes are named"
    arguments = shlex.split(message["command"])
    assert arguments[arguments.index("--case") + 1] == message["case"]

    again = run(package, environment, "octavo_server", *arguments[1:])
    assert again.returncode == 1, again.stdout + again.stderr
    assert message["case"] in again.stdout
    assert f"NMSE {message['error']}" in again.stdout
    assert "0 of 1 cases passed" in again.stdout


def test_the_command_says_what_it_wrote_and_what_to_do_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(new_backend, [NAME, "--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = {str(path.relative_to(tmp_path / "octavo-my-chip")) for path in tmp_path.rglob("*") if path.is_file()}
    shown, _, following = result.output.partition("Next:")
    assert written == {line.strip() for line in shown.splitlines()[1:] if line.strip()}
    assert {"pyproject.toml", "octavo_my_chip/device.py", ".github/workflows/conformance.yml"} <= written
    assert [line.strip() for line in following.splitlines() if line.strip()] == [
        f"cd {tmp_path / 'octavo-my-chip'}",
        'pip install -e ".[test]"',
        "octavo conformance run --backend my-chip --quick",
    ]


@pytest.mark.parametrize("name", ["a", NAME, "x2_y-3", "z" * LONGEST_NAME])
def test_the_package_is_clean_under_its_own_ruff_whatever_its_name(tmp_path: Path, name: str) -> None:
    package = generate(name, tmp_path)
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        ran = run(package, dict(os.environ), *command)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_package_is_clean_under_strict_mypy(package: Path) -> None:
    """By this repository's settings, which are strict: what `make lint` has checked before is not checked again."""
    assert tomllib.loads((package / "pyproject.toml").read_text())["tool"]["mypy"]["strict"]
    ran = run(ROOT, os.environ | {"MYPYPATH": str(package)}, "mypy", "-p", "octavo_my_chip")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no issues found in 3 source files" in ran.stdout


def test_the_package_says_its_name_everywhere_and_keeps_the_workflows_own_expressions(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {"octavo.backends": {NAME: "octavo_my_chip.plugin"}}
    assert project["tool"]["pytest"]["ini_options"]["addopts"][:2] == ["--octavo-backend", NAME]
    assert tomllib.loads((package / "octavo-conformance.toml").read_text()) == {}
    workflow = (package / ".github" / "workflows" / "conformance.yml").read_text()
    assert f"OCTAVO_BACKEND: {NAME}" in workflow
    assert "${{ matrix.accelerator }}" in workflow
    for path in package.rglob("*"):
        if path.is_file():
            assert "<<" not in path.read_text(), path
            assert ">>" not in path.read_text().replace('>> "$GITHUB_PATH"', ""), path


def test_the_entries_that_its_expectations_file_explains_would_be_accepted(package: Path, tmp_path: Path) -> None:
    comments = (package / "octavo-conformance.toml").read_text().splitlines()
    entries = [line.removeprefix("# ") for line in comments if re.match(r"# (\[\[|\w+ = )", line)]
    (tmp_path / "uncommented.toml").write_text("\n".join(entries))
    expectations = read_expectations(tmp_path / "uncommented.toml", ids())
    assert (len(expectations.failures), len(expectations.overrides)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("My-Chip", "lower-case letters and digits"),
        ("7up", "a letter first"),
        ("a-", "cannot be the name"),
        ("a--b", "single hyphens"),
        ("../up", "cannot be the name"),
        ("", "cannot be the name"),
        ("puce\u00e9", "cannot be the name"),
        ("a\n", "cannot be the name"),
        ("z" * (LONGEST_NAME + 1), "at most 32"),
        ("auto", "the best one"),
        ("class", "keyword of Python"),
        ("reference", "already"),
        ("cpu", "already"),
        ("server", "octavo-server, which is installed"),
        ("core", "octavo-core, which is installed"),
    ],
)
def test_a_name_that_no_backend_can_have_is_refused_with_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(NewBackendError, match=re.escape(sentence)) as refused:
        generate(name, tmp_path)
    assert str(refused.value).count(". ") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "octavo-my-chip").mkdir()
    result = CliRunner().invoke(new_backend, [NAME, "--directory", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert list((tmp_path / "octavo-my-chip").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NewBackendError, match="cannot be written"):
        generate(NAME, tmp_path / "file" / "below")
