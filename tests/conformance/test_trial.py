"""The suite on trial: every backend that is wrong on purpose is caught, by the case that the published table names.

`tests/conformance/trial` holds the backends; `make conformance-trial` makes the table.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from octavo.backend import BackendError, DeviceConfig
from octavo.backend.discovery import open_device
from octavo_conformance.case import Case, Level
from octavo_conformance.running.execute import execute
from octavo_conformance.running.process import Worker
from octavo_conformance.running.wire import Assignment
from octavo_conformance.suite import cases
from octavo_conformance.tolerances import Tolerances
from octavo_conformance.verdict import Outcome, Verdict
from octavo_conformance.workbench import Workbench

TRIAL = Path(__file__).parent / "trial"
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance-trial.md"
CONTROL = "wrong-nothing"
AT_LEAST = 40

# NumPy's, of numbers that overflow: the suite asks for them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@dataclass(frozen=True)
class Row:
    """A row of the published table."""

    fault: str
    what: str
    op: str
    case: str


def rows_of(document: Path) -> tuple[Row, ...]:
    """The rows of a table; without the counts, in which a case near its tolerance may be in or out."""
    pattern = re.compile(r"^\| `([^`]+)` \| (.+) \| `([^`]+)` \| .+ \| (?:`([^`]+)`|\*\*none\*\*) \|$", re.MULTILINE)
    return tuple(Row(*(part or "" for part in found.groups())) for found in pattern.finditer(document.read_text()))


ROWS = rows_of(DOCUMENT)
BY_CASE: Mapping[str, Row] = {row.case: row for row in ROWS}


@pytest.fixture(autouse=True)
def wrong_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is found, here and in the processes that cases start."""
    monkeypatch.syspath_prepend(str(TRIAL))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TRIAL), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def catalogue() -> ModuleType:
    return import_module("octavo_wrong.catalogue")


def case(name: str) -> Case:
    return next(case for case in cases() if case.id == name)


def outcome_of(backend: str, name: str) -> Outcome:
    """The outcome of one case on a backend; as in a run of the suite, what does not open has failed."""
    config = DeviceConfig(backend=backend)
    try:
        device = open_device(config).device
    except BackendError as error:
        return Outcome(name, Verdict.FAILED, str(error))
    return execute(case(name), Workbench(device, config, Tolerances()))


def fatal(backend: str, name: str) -> Outcome:
    """The outcome of a case that ends or blocks its process."""
    chosen = case(name)
    worker = Worker(Assignment(backend, "auto", {}), threads=1, patience=3 / chosen.limit)
    try:
        return worker.run(chosen)
    finally:
        worker.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
def test_the_case_of_the_table_catches_the_fault(row: Row, catalogue: ModuleType) -> None:
    (fault,) = (fault for fault in catalogue.FAULTS if fault.name == row.fault)
    outcome = (fatal if fault.fatal else outcome_of)(fault.backend_name, row.case)
    assert outcome.verdict is Verdict.FAILED, f"{fault.what} {row.case} does not notice."
    assert outcome.reason


@pytest.mark.parametrize("name", sorted(BY_CASE))
def test_the_case_passes_where_nothing_is_wrong(name: str) -> None:
    outcome = outcome_of(CONTROL, name)
    assert outcome.verdict is Verdict.PASSED, outcome.reason


def test_the_table_has_every_fault_and_no_other(catalogue: ModuleType) -> None:
    assert [(row.fault, row.what, row.op) for row in ROWS] == [
        (fault.name, fault.what, fault.op) for fault in catalogue.FAULTS
    ]
    assert len(ROWS) >= AT_LEAST


def test_each_fault_is_caught_at_its_level_and_an_operation_s_by_a_case_of_that_operation(
    catalogue: ModuleType,
) -> None:
    for fault, row in zip(catalogue.FAULTS, ROWS, strict=True):
        caught = case(row.case)
        assert caught.level is fault.level, f"{fault.name} is caught by {row.case}, and must be at {fault.level.value}."
        if fault.level is Level.OPS:
            assert caught.subject == fault.op, f"{fault.name} is wrong in {fault.op} and is caught by {row.case}."


def test_what_is_caught_above_the_operations_says_why(catalogue: ModuleType) -> None:
    above = {fault.name for fault in catalogue.FAULTS if fault.level not in (Level.CONTRACT, Level.OPS)}
    assert above == {fault.name for fault in catalogue.FAULTS if fault.above_ops}


def test_the_quick_set_is_enough(catalogue: ModuleType) -> None:
    slow = [row.fault for row in ROWS if not case(row.case).quick]
    assert not slow, f"Caught by the whole suite only: {', '.join(slow)}"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_table_is_what_the_suite_finds(tmp_path: Path) -> None:
    made = tmp_path / "table.md"
    command = [sys.executable, str(TRIAL / "table.py"), "--output", str(made)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert rows_of(made) == ROWS
