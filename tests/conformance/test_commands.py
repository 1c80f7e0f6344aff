"""`octavo conformance` as it is used: real processes, their exit codes, and what they say."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_conformance.suite import cases

ODD = Path(__file__).parents[1] / "fixtures" / "odd_backends"


def octavo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ODD), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "octavo_server", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def run(backend: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return octavo("conformance", "run", "--backend", backend, *arguments)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a small part of the suite."""
    path = tmp_path_factory.mktemp("report") / "reference.json"
    ran = run("reference", "--case", "ops/top_k/*", "--report", path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return path


def test_a_backend_that_passes_ends_with_0_and_leaves_a_report(report: Path) -> None:
    document = json.loads(report.read_text())
    assert document["backend"]["name"] == "reference"
    assert document["selection"]["pattern"] == "ops/top_k/*"
    assert {result["verdict"] for result in document["results"]} == {"passed"}


def test_a_report_with_a_case_removed_is_refused(report: Path, tmp_path: Path) -> None:
    lines = report.read_text().splitlines()
    where = next(index for index, line in enumerate(lines) if '"ops/top_k/' in line)
    shorter = tmp_path / "shorter.json"
    shorter.write_text("\n".join(lines[:where] + lines[where + 1 :]))
    for command in (("compare", report, shorter), ("site", shorter, "-o", tmp_path / "site")):
        ran = octavo("conformance", *command)
        assert ran.returncode == 2
        assert str(shorter) in ran.stderr
        assert "Traceback" not in ran.stderr


def test_comparing_a_report_with_itself_finds_nothing(report: Path) -> None:
    ran = octavo("conformance", "compare", report, report)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_run_of_fewer_cases_does_not_compare_as_well(report: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.json"
    assert run("reference", "--case", "ops/top_k/*generated*", "--report", fewer).returncode == 0
    ran = octavo("conformance", "compare", report, fewer)
    assert ran.returncode == 1
    assert "Passed before and not run now" in ran.stdout
    assert octavo("conformance", "compare", fewer, report).returncode == 0


def test_a_failing_backend_ends_with_1_and_says_which_command_shows_it_again(tmp_path: Path) -> None:
    path = tmp_path / "raising.json"
    ran = run("raising", "--case", "ops/linear/float32/* ops/top_k/*", "--quick", "--report", path)
    assert ran.returncode == 1
    assert "the matrix unit is on fire" in ran.stdout
    assert "To reproduce: octavo conformance run --backend raising --case ops/linear/float32/" in ran.stdout
    results = json.loads(path.read_text())["results"]
    verdicts = {result["case"].split("/")[1]: result["verdict"] for result in results}
    assert verdicts == {"linear": "failed", "top_k": "passed"}
    printed = next(line for line in ran.stdout.splitlines() if "To reproduce: octavo " in line)
    again = octavo(*shlex.split(printed.partition("To reproduce: octavo ")[2]))
    assert again.returncode == 1
    assert "Suite 1.0, cases: 1\n" in again.stdout
    assert "the matrix unit is on fire" in again.stdout


def test_a_backend_that_claims_nothing_scores_nothing(tmp_path: Path) -> None:
    ran = run("barren", "--quick", "--report", tmp_path / "barren.json")
    assert ran.returncode == 1
    verdicts = [result["verdict"] for result in json.loads((tmp_path / "barren.json").read_text())["results"]]
    assert verdicts
    assert "passed" not in verdicts
    assert "claims no dtypes" in ran.stdout


def test_an_absent_device_is_unavailable_and_ends_with_3(tmp_path: Path) -> None:
    ran = run("absent", "--quick", "--report", tmp_path / "absent.json")
    assert ran.returncode == 3
    assert "pip install odd-card" in ran.stdout
    results = json.loads((tmp_path / "absent.json").read_text())["results"]
    assert {result["verdict"] for result in results} == {"unavailable"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "nobody"], "There is no backend 'nobody'; installed are: "),
        (["--backend", "reference", "--kernel", "warp"], "has no kernel 'warp'; it has: reference"),
        (["--backend", "auto"], "name it instead of 'auto'"),
        (["--backend", "reference", "--case", "ops/nothing/*"], "No case of the suite matches 'ops/nothing/*'"),
        (["--backend", "reference", "--level", "speed"], "'speed' is not one of 'contract'"),
        (["--backend", "reference", "--option", "fast"], "given as key=value, and got 'fast'"),
        (["--backend", "reference", "--expectations", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (["--backend", "reference", "--report", "/nowhere/report.json"], "There is no folder /nowhere"),
        (["--backend", "reference", "--jobs", "0"], "0 is not in the range"),
        ([], "Missing option '--backend'"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence(arguments: list[str], sentence: str) -> None:
    ran = octavo("conformance", "run", *arguments)
    assert ran.returncode == 2
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr


def test_expected_failures_are_strict_and_reported(tmp_path: Path) -> None:
    expectations = tmp_path / "expected.toml"
    expectations.write_text('[[expected-failure]]\ncase = "ops/linear/*"\nreason = "no matrix unit yet"\n')
    selected = ["--case", "ops/linear/float32/* ops/top_k/*", "--quick", "--expectations", expectations]
    path = tmp_path / "raising.json"
    assert run("raising", *selected, "--report", path).returncode == 0
    results = json.loads(path.read_text())["results"]
    assert {result["verdict"] for result in results if "/linear/" in result["case"]} == {"expected failure"}
    ran = run("reference", *selected)
    assert ran.returncode == 1
    assert "It passed, and was expected to fail (no matrix unit yet)" in ran.stdout


def test_the_list_names_the_cases_of_the_quick_set() -> None:
    every, quick = octavo("conformance", "list").stdout.split(), octavo("conformance", "list", "--quick").stdout.split()
    assert set(quick) < set(every)
    assert {case.split("/")[0] for case in quick} == {case.split("/")[0] for case in every}


def test_under_pytest_each_case_is_a_test(tmp_path: Path) -> None:
    def pytest_run(backend: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull),
            *("--rootdir", str(tmp_path), "--pyargs", "octavo_conformance", "--octavo-backend", backend, *arguments),
        ]
        environment = os.environ | {"PYTHONPATH": str(ODD), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)

    path = tmp_path / "report.json"
    ran = pytest_run("reference", "--octavo-case", "ops/top_k/*", "--octavo-report", str(path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(json.loads(path.read_text())['results'])} passed" in ran.stdout
    case = next(case.id for case in cases() if case.quick and case.id.startswith("ops/linear/float32/"))
    ran = pytest_run("aborting", "--octavo-case", f"{case} ops/top_k/*", "--octavo-quick")
    assert ran.returncode == 1
    assert "The process died of SIGABRT" in ran.stdout
    assert "To reproduce: octavo conformance run --backend aborting --case ops/linear/" in ran.stdout
    assert " passed" in ran.stdout
    ran = pytest_run("reference", "--octavo-case", "contract/collectives/shards=2")
    assert ran.returncode == 1
    assert "No case passed: that is no conformance" in ran.stdout
    ran = pytest_run("absent", "--octavo-quick")
    assert ran.returncode == 3
    assert "pip install odd-card" in ran.stdout + ran.stderr
    ran = pytest_run("reference", "--octavo-case", "ops/nothing/*")
    assert ran.returncode == 4
    assert "No case of the suite matches" in ran.stdout + ran.stderr
