"""The workflow files: what they run exists, and they run what they are for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from octavo_conformance.expectations import read_expectations
from octavo_conformance.must_pass import ids
from octavo_conformance.new_backend.generate import render
from octavo_conformance.new_backend.name import BackendName
from octavo_server.cli import octavo

ROOT = Path(__file__).parents[2]
OURS = ROOT / ".github" / "workflows" / "conformance.yml"
VENDORS = ROOT / "conformance" / "ci" / "accelerator.yml"
WORKFLOWS = [OURS, VENDORS]
PAGES = [
    ROOT / "docs" / "vendor-guide.md",
    ROOT / "docs" / "conformance.md",
    ROOT / "conformance" / "README.md",
    ROOT / "README.md",
]


def load(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    document["on"] = document.pop(True)  # YAML 1.1 reads the key `on` as a truth value
    return document


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def commands(workflow: dict[str, Any]) -> list[str]:
    """The lines that call `octavo`, with something in the place of each expression."""
    lines = [line for step in steps(workflow) for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"\$\{\{.*?\}\}", "something", line).strip() for line in lines]
    return [line for line in lines if line.startswith("octavo ")]


def parse(line: str) -> click.Context:
    """The command that a line calls, with its options parsed and nothing run. Raises click.UsageError."""
    _, *arguments = shlex.split(line, comments=True)
    command: click.Command = octavo
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"There is no command {name!r} in {line!r}.")
        command = found
    return command.make_context(line, arguments)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_octavo_command_of_a_workflow_is_one_that_exists(path: Path) -> None:
    lines = commands(load(path))
    assert {line.split()[2] for line in lines if line.startswith("octavo conformance")} == {"run", "compare", "site"}
    for line in lines:
        parse(line)


@pytest.mark.parametrize(
    "line", ["octavo conformance run --backned cpu", "octavo conform run", "octavo conformance run"]
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_octavo_command_of_a_page_is_one_that_exists(path: Path) -> None:
    blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        if line.startswith("octavo ") and "--help" not in line:
            parse(line)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_case_that_a_page_names_is_one_of_the_suite(path: Path) -> None:
    for case in re.findall(r"(?<![\w/.-])(?:contract|ops|step|engine)/[a-z_]+/[^\s\"`]+", path.read_text()):
        assert any(fnmatchcase(known, case) for known in ids()), f"no case of the suite matches {case}"


@pytest.mark.parametrize("path", PAGES[:2], ids=lambda path: path.name)
def test_the_expectations_that_a_page_shows_would_be_accepted(path: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml.*?\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "shown.toml").write_text("\n".join(block for block in blocks if block.startswith("[[")))
    expectations = read_expectations(tmp_path / "shown.toml", ids())
    assert (len(expectations.failures), len(expectations.overrides)) == (1, 1)


def test_the_vendors_workflow_is_the_one_that_a_new_backend_gets() -> None:
    assert VENDORS.read_text() == render(BackendName("my-accelerator"))[".github/workflows/conformance.yml"]


def test_the_vendors_workflow_runs_on_its_own_labelled_machine_and_not_for_strangers() -> None:
    workflow = load(VENDORS)
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == ["self-hosted", "${{ matrix.accelerator }}"]
    assert "head.repo.full_name == github.repository" in job["if"]
    assert job["timeout-minutes"] <= 120
    assert {"pull_request", "schedule"} <= set(workflow["on"])
    assert workflow["concurrency"]["cancel-in-progress"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_vendors_workflow_runs_everything_at_night_and_keeps_the_report() -> None:
    runs = [step for step in steps(load(VENDORS)) if "octavo conformance run" in step.get("run", "")]
    quick, whole = sorted(runs, key=lambda step: "--quick" not in step["run"])
    assert quick["if"] == "github.event_name == 'pull_request'"
    assert whole["if"] == "github.event_name != 'pull_request'"
    assert "--quick" not in whole["run"]
    (upload,) = (step for step in steps(load(VENDORS)) if "upload-artifact" in step.get("uses", ""))
    assert "${{ env.REPORT }}" in upload["with"]["path"]


def test_our_workflow_runs_the_whole_suite_on_all_that_needs_no_accelerator_at_every_change() -> None:
    workflow = load(OURS)
    assert {"push", "pull_request"} <= set(workflow["on"])
    assert workflow["jobs"]["run"]["strategy"]["matrix"] == {"backend": ["reference", "cpu", "xla"]}
    runs = [step for step in steps(workflow) if "octavo conformance run" in step.get("run", "")]
    assert [step["if"] for step in runs] == ["${{ matrix.backend != 'xla' }}", "${{ matrix.backend == 'xla' }}"]
    for line in commands(workflow):
        if line.startswith("octavo conformance run"):
            asked = parse(line).params
            assert (asked["levels"], asked["pattern"], asked["quick"], asked["expectations"]) == ((), "", False, None)


def test_our_reports_are_compared_with_the_base_and_collected_into_the_site() -> None:
    workflow = load(OURS)
    (compare,) = (step for step in steps(workflow) if "octavo conformance compare" in step.get("run", ""))
    assert "base/conformance/reports" in compare["run"]
    (download,) = (step for step in steps(workflow) if "download-artifact" in step.get("uses", ""))
    (site,) = (step for step in steps(workflow) if "octavo conformance site" in step.get("run", ""))
    assert f"{download['with']['path']}/*.json" in site["run"]
    assert any("upload-pages-artifact" in step.get("uses", "") for step in steps(workflow))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_secret_and_no_stranger_in_a_shell(path: Path) -> None:
    """Nothing that a contributor writes (titles, branch names) is pasted into a command line."""
    assert "secrets." not in path.read_text()
    for step in steps(load(path)):
        for expression in re.findall(r"\$\{\{(.*?)\}\}", step.get("run", "")):
            assert expression.strip().startswith("matrix."), expression
