"""Cases in processes of their own: a crash or a hang is one case's failure, and the run goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo_conformance.case import Case, Level
from octavo_conformance.running.pool import Pool
from octavo_conformance.running.process import Worker
from octavo_conformance.running.wire import Assignment
from octavo_conformance.suite import cases
from octavo_conformance.verdict import Verdict

ODD = Path(__file__).parents[1] / "fixtures" / "odd_backends"


@pytest.fixture(autouse=True)
def odd_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ODD), os.environ.get("PYTHONPATH", "")]))


def first(subject: str) -> Case:
    """The first case of an operation."""
    return next(case for case in cases() if case.level is Level.OPS and case.subject == subject)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("segfaulting", "died of SIGSEGV"),
        ("aborting", "died of SIGABRT"),
        ("exiting", "ended itself with exit code 7"),
        ("hanging", "gave no result within 10 seconds and was stopped"),
        ("raising", "RuntimeError: the matrix unit is on fire"),
        ("sick", "RuntimeError: the matrix unit is on fire"),
        ("forking", "RuntimeError: the matrix unit is on fire"),
        ("babbling", "1,998,000 more characters"),
        ("unspeakable", "its message raised"),
        ("closing", "gave no result within 10 seconds and was stopped"),
    ],
)
def test_what_ends_a_case_is_its_failure_and_the_next_case_runs(backend: str, reason: str) -> None:
    linear, other = first("linear"), first("rms_norm")
    worker = Worker(Assignment(backend, "auto", {}), threads=1, patience=10 / linear.limit)
    try:
        outcome = worker.run(linear)
        assert outcome.verdict is Verdict.FAILED
        assert reason in outcome.reason
        if backend in ("segfaulting", "aborting", "hanging"):
            assert "octavo_odd.py" in outcome.reason, "the reason does not say where it happened"
        assert worker.run(other).verdict is Verdict.PASSED
    finally:
        worker.close()


def test_a_device_that_dies_while_it_is_opened_is_a_broken_backend() -> None:
    with Pool(Assignment("dying", "auto", {})) as pool:
        opened = pool.open()
    assert opened.info is None
    assert "the process died of SIGABRT" in opened.broken


def test_a_probe_that_raises_is_a_broken_backend_and_no_missing_device() -> None:
    with Pool(Assignment("probing", "auto", {})) as pool:
        opened = pool.open()
    assert not opened.unavailable
    assert "Its probe raised OSError: the driver is gone" in opened.broken


def test_a_missing_device_and_an_unknown_name_are_not_broken_backends() -> None:
    with Pool(Assignment("absent", "auto", {})) as pool:
        assert pool.open().unavailable == "No odd card is here. To install what is missing: pip install odd-card"
    with Pool(Assignment("nobody", "auto", {})) as pool:
        assert "There is no backend 'nobody'" in pool.open().unknown


def test_several_workers_run_every_case_once() -> None:
    some = [case for case in cases() if case.level is Level.OPS and case.subject == "top_k"]
    assert len(some) > 4
    with Pool(Assignment("reference", "auto", {}), jobs=2) as pool:
        outcomes = list(pool.run(some))
    assert sorted(outcome.case for outcome in outcomes) == sorted(case.id for case in some)
    assert Verdict.FAILED not in {outcome.verdict for outcome in outcomes}


def test_a_closed_pool_leaves_no_process() -> None:
    worker = Worker(Assignment("hanging", "auto", {}), threads=1)
    opened = worker.start()
    assert opened.info is not None
    process = worker._running
    assert process is not None
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(process._process.pid, 0)
