"""The levels contract, invariance and performance where the trial of wrong backends does not reach: shards, 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from octavo import SamplingParams
from octavo.backend import Device, DeviceConfig, DType
from octavo.backend.discovery import open_device
from octavo.outputs import Logprob
from octavo_conformance.case import Case
from octavo_conformance.cases import contract, engine, invariance, performance
from octavo_conformance.cases.contract import shards
from octavo_conformance.cases.invariance.token_runs import Completion, Request, check_same
from octavo_conformance.running.execute import execute
from octavo_conformance.tolerances import Tolerances
from octavo_conformance.verdict import Outcome, Verdict
from octavo_conformance.workbench import CaseFailure, Workbench

FIXTURES = Path(__file__).parents[1] / "fixtures"


def _bench(backend: str) -> Workbench:
    config = DeviceConfig(backend=backend)
    return Workbench(open_device(config).device, config, Tolerances())


def _case(cases: Sequence[Case], name: str) -> Case:
    return next(case for case in cases if case.id == name)


# ----------------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def two_shards(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Outcome]:
    """Runs the case of two shards on a backend of the fixture."""
    monkeypatch.syspath_prepend(str(FIXTURES / "sharded_backend"))
    # Both start at once: whether the first is a mesh shows in what it answers.
    monkeypatch.setattr(shards, "_ALONE", 0.1)
    case = _case(list(contract.cases()), "contract/collectives/shards=2")

    def run(backend: str) -> Outcome:
        return execute(case, _bench(backend))

    return run


@pytest.mark.parametrize("backend", ["sharded", "sharded-mesh", "program"])
def test_two_shards_that_agree_pass_as_processes_as_a_sharding_compiler_and_as_a_program_on_each(
    two_shards: Callable[[str], Outcome], backend: str
) -> None:
    outcome = two_shards(backend)
    assert outcome.verdict is Verdict.PASSED, outcome.reason


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("sharded-reversed", "all_gather"),
        ("sharded-drifting", "different bits"),
        ("sharded-broken", "the link is down"),
        ("sharded-unsharded", "load gave shard 0 of 2"),
        ("sharded-firsts", "(rank, size)"),
        ("program-unsummed", "all_reduce, on a mesh: the result is wrong"),
        ("program-blunt", "fused"),
        ("program-second", "(rank, size) (1, 2)"),
    ],
)
def test_a_fault_between_two_shards_is_named(two_shards: Callable[[str], Outcome], backend: str, message: str) -> None:
    outcome = two_shards(backend)
    assert outcome.verdict is Verdict.FAILED
    assert message in outcome.reason, outcome.reason


@pytest.mark.parametrize("backend", ["program", "sharded-mesh"])
def test_a_model_that_a_mesh_shares_passes(two_shards: Callable[[str], Outcome], backend: str) -> None:
    outcome = execute(_case(list(engine.cases()), "engine/tensor_parallel/shards=2"), _bench(backend))
    assert outcome.verdict is Verdict.PASSED, outcome.reason


@pytest.mark.parametrize("backend", ["program-unsummed", "program-blunt"])
def test_a_model_that_a_faulty_mesh_shares_fails(two_shards: Callable[[str], Outcome], backend: str) -> None:
    outcome = execute(_case(list(engine.cases()), "engine/tensor_parallel/shards=2"), _bench(backend))
    assert outcome.verdict is Verdict.FAILED


def test_shards_that_are_processes_are_unsupported_where_the_engine_has_one(
    two_shards: Callable[[str], Outcome],
) -> None:
    outcome = execute(_case(list(engine.cases()), "engine/tensor_parallel/shards=2"), _bench("sharded"))
    assert outcome.verdict is Verdict.UNSUPPORTED
    assert "two processes" in outcome.reason


def test_a_backend_of_one_shard_is_not_asked_for_two() -> None:
    outcome = execute(_case(list(contract.cases()), "contract/collectives/shards=2"), _bench("reference"))
    assert outcome.verdict is Verdict.UNSUPPORTED
    assert "max_tensor_parallel is 1" in outcome.reason


# ---------------------------------------------------------------------------------------------------- 16-bit devices


class SixteenBits(Workbench):
    """A device whose most precise dtype is bfloat16."""

    dtype = DType.BFLOAT16  # type: ignore[assignment]


REQUESTS = [Request([1, 2, 3], SamplingParams(seed=number)) for number in range(4)]


def _results(*, other: int, logprob: float) -> list[list[Completion]]:
    """Four completions; `other` of them take token 8 at position 1, where token 7 has this log-probability."""
    completions = []
    for number in range(4):
        second = 8 if number < other else 7
        near = {token: Logprob(-1.0 - token / 10, 1, "") for token in range(20)}
        near[7] = Logprob(logprob, 1, "")
        completions.append([Completion([5, second, 6], [near] * 3)])
    return completions


def _check(bench: Workbench, *, other: int, logprob: float) -> None:
    expected, came = _results(other=0, logprob=-1.0), _results(other=other, logprob=logprob)
    check_same(bench, REQUESTS, "alone", expected, "in a batch", came)


def _open(kind: type[Workbench]) -> Workbench:
    config = DeviceConfig(backend="reference")
    device: Device = open_device(config).device
    return kind(device, config, Tolerances())


def test_in_16_bits_a_close_contender_may_win_and_nothing_else_may() -> None:
    bench = _open(SixteenBits)
    _check(bench, other=1, logprob=-1.1)
    with pytest.raises(CaseFailure, match=r"request 0 .* from output position 1 on"):
        _check(bench, other=1, logprob=-3.0)


def test_in_16_bits_most_sequences_still_have_to_be_the_same() -> None:
    with pytest.raises(CaseFailure, match="3 of 4 sequences"):
        _check(_open(SixteenBits), other=3, logprob=-1.1)


def test_in_float32_no_difference_is_excused() -> None:
    with pytest.raises(CaseFailure, match=r"request 0 .* from output position 1 on"):
        _check(_open(Workbench), other=1, logprob=-1.0)


@pytest.mark.parametrize("name", ["batch", "chunked_prefill/mistral", "preempted", "reference/llama"])
def test_tokens_of_a_16_bit_device_agree_by_the_rule(name: str) -> None:
    config = DeviceConfig(backend="cpu")
    case = _case(list(invariance.cases()), f"invariance/tokens/{name}")
    case.run(SixteenBits(open_device(config).device, config, Tolerances(), case.id))


# ------------------------------------------------------------------------------------------------------- performance


def test_performance_is_recorded_and_not_judged() -> None:
    case = _case(list(performance.cases()), "performance/linear/float32/rows=1")
    outcome = execute(case, _bench("reference"))
    assert outcome.verdict is Verdict.PASSED
    assert set(outcome.figures) == {"seconds", "bytes", "bytes_per_second", "flops_per_second", "of_copy_bandwidth"}
    assert all(figure > 0.0 for figure in outcome.figures.values())
    assert outcome.nmse is None
