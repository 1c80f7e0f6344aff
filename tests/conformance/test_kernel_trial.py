"""The kernels on trial: every kernel that is wrong on purpose is caught, by the case that the published table names.

`tests/conformance/kernel_trial` holds the faults; `make kernels-trial` makes the table. Nothing is interpreted in this
process: the trial starts one for each fault.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from octavo_conformance.case import Level
from octavo_conformance.suite import cases

AT_LEAST = 30
SHARE = (
    "causal-mask-strict",
    "entries-not-scaled",
    "norm-without-residual",
    "ties-by-highest-index",
    "offset-forgotten",
    "adapter-none-taken-for-first",
)
"""Tried by `make test`, one of each kind of kernel; all of them by `make test-slow`, each with a process of its own."""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes the table, and that knows the faults."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("kernel_trial.table")


@pytest.fixture
def rows(table: ModuleType) -> dict[str, Any]:
    """The rows of the published table, by fault."""
    return {row.fault: row for row in table.rows_of(table.DOCUMENT.read_text())}


@pytest.mark.parametrize("name", SHARE)
def test_the_case_of_the_table_catches_the_fault(name: str, table: ModuleType, rows: dict[str, Any]) -> None:
    (fault,) = (fault for fault in table.FAULTS if fault.name == name)
    (caught,) = table.failing(fault, [rows[name].case])
    assert caught.failure


def test_the_cases_pass_with_the_kernels_as_they_are(table: ModuleType, rows: dict[str, Any]) -> None:
    assert table.failing(None, [rows[name].case for name in SHARE]) == []


def test_every_fault_still_fits_its_kernel(table: ModuleType) -> None:
    for fault in table.FAULTS:
        compile(fault.source(), fault.file, "exec")


@pytest.mark.parametrize(("text", "times"), [("no such line", 0), ("value", "[0-9]{2}")])
def test_a_fault_whose_kernel_was_changed_says_so(text: str, times: object, table: ModuleType) -> None:
    fault = replace(next(fault for fault in table.FAULTS if fault.file == "rms_norm.py"), name="gone", old=text)
    error = import_module("kernel_trial.fault").NoSuchTextError
    with pytest.raises(error, match=rf"^gone: '{text}' is {times} times in rms_norm\.py\.$"):
        fault.source()


def test_a_kernel_that_raises_has_not_been_caught(table: ModuleType, rows: dict[str, Any]) -> None:
    (fault,) = (fault for fault in table.FAULTS if fault.name == "norm-without-residual")
    with pytest.raises(RuntimeError, match="The process of the cases ended with 1"):
        table.failing(replace(fault, new="        no_such_name\n"), [rows[fault.name].case])


def test_the_table_has_every_fault_and_no_other(table: ModuleType, rows: dict[str, Any]) -> None:
    assert {name: (row.what, row.op, row.file) for name, row in rows.items()} == {
        fault.name: (fault.what, fault.op, fault.file) for fault in table.FAULTS
    }
    assert len(rows) == len(table.FAULTS) >= AT_LEAST


def test_each_fault_is_caught_by_a_case_of_its_operation(table: ModuleType, rows: dict[str, Any]) -> None:
    known = {case.id: case for case in cases()}
    for fault in table.FAULTS:
        case = known[rows[fault.name].case]
        assert (case.level, case.subject) == (Level.OPS, fault.op)


def test_the_page_reads_back_as_it_was_written(table: ModuleType, rows: dict[str, Any]) -> None:
    assert table.document(rows.values()) == table.DOCUMENT.read_text()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_table_is_what_the_suite_finds(table: ModuleType, rows: dict[str, Any], tmp_path: Path) -> None:
    made = tmp_path / "table.md"
    assert table.main(["--output", str(made)]) == 0
    assert {row.fault: row for row in table.rows_of(made.read_text())} == rows
