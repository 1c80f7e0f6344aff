"""A request that makes a step fail ends alone; a device that is lost ends the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.backend import DeviceLostError
from octavo.engine import Engine, EngineDeadError
from octavo.outputs import RequestUpdate

FAULTY = Path(__file__).parents[1] / "fixtures" / "faulty_backend"
POISON, DEATH = 42042, 43043  # as the plugin has them
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.syspath_prepend(str(FAULTY))
    yield LLM("demo", backend="faulty", max_model_len=64, max_num_seqs=8, check_integrity=True)
    sys.modules.pop("octavo_faulty", None)


@pytest.fixture
def engine(llm: LLM) -> Engine:
    return llm.engine


def _run(engine: Engine) -> dict[str, RequestUpdate]:
    """The last update of each request."""
    last = {}
    while engine.has_work:
        for update in engine.step():
            if update.finished:
                last[update.request_id] = update
    return last


def test_only_the_request_that_makes_a_step_fail_ends_with_an_error(engine: Engine) -> None:
    for name, prompt in {"before": [1, 2, 3], "poison": [4, POISON, 5], "after": [6, 7]}.items():
        engine.add(engine.processor.process(name, prompt, GREEDY))
    last = _run(engine)
    assert last["poison"].error is not None
    assert "poisoned" in last["poison"].error
    assert [part.finish_reason for part in last["poison"].sequences] == ["error"]
    for name in ("before", "after"):
        assert last[name].error is None
        assert last[name].sequences[0].finish_reason == "length"
    assert engine.stats().kv_used_slots == 0


def test_failing_requests_one_after_another_do_not_end_the_engine(engine: Engine) -> None:
    for index in range(6):
        engine.add(engine.processor.process(f"poison {index}", [POISON], GREEDY))
        assert _run(engine)[f"poison {index}"].error is not None
    engine.add(engine.processor.process("good", [1, 2], GREEDY))
    assert _run(engine)["good"].error is None


def test_siblings_of_a_failing_request_end_with_it(engine: Engine) -> None:
    forced = SamplingParams(temperature=0.0, n=3, max_tokens=8, ignore_eos=True, logit_bias={POISON: 100.0})
    engine.add(engine.processor.process("siblings", [1, 2, 3], forced))
    engine.add(engine.processor.process("good", [1, 2, 3], GREEDY))
    last = _run(engine)
    assert sorted(part.index for part in last["siblings"].sequences) == [0, 1, 2]
    assert {part.finish_reason for part in last["siblings"].sequences} == {"error"}
    assert last["good"].error is None


def test_a_failing_prompt_of_a_list_costs_the_others_nothing(llm: LLM) -> None:
    bad, good = llm.generate([[POISON, 1], [1, 2]], GREEDY)
    assert bad.error is not None
    assert bad.outputs[0].finish_reason == "error"
    assert good.error is None
    assert len(good.outputs[0].token_ids) == 6


def test_an_interrupted_call_leaves_nothing_behind_for_the_next(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = llm.engine.step, []

    def interrupted() -> list[RequestUpdate]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2], [3, 4]], GREEDY)
    assert llm.engine.stats().kv_used_slots == 0
    assert len(llm.generate([[5, 6]], GREEDY)[0].outputs[0].token_ids) == 6


def test_blocks_that_could_not_be_copied_leave_nobody_with_wrong_tokens(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=1.0, n=3, seed=3, max_tokens=6, ignore_eos=True)
    prompts = [[1, 2, 3], [4, 5, 6]]
    expected = [[output.token_ids for output in result.outputs] for result in llm.generate(prompts, params)]

    def broken(*_: object) -> None:
        raise RuntimeError("copy engine stuck")

    monkeypatch.setattr(llm.engine._runner._device.ops, "copy_blocks", broken, raising=False)
    for result, right in zip(llm.generate(prompts, params), expected, strict=True):
        assert result.error is not None or [output.token_ids for output in result.outputs] == right
        assert result.error is not None


def test_a_device_that_is_lost_while_blocks_are_copied_ends_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise DeviceLostError("fell off the bus")

    monkeypatch.setattr(llm.engine._runner._device.ops, "copy_blocks", lost, raising=False)
    params = SamplingParams(temperature=1.0, n=3, seed=3, max_tokens=6, ignore_eos=True)
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        llm.generate([[1, 2, 3], [4, 5, 6]], params)


def test_a_lost_device_ends_the_engine_with_the_reason(engine: Engine) -> None:
    engine.add(engine.processor.process("last", [1, DEATH], GREEDY))
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        _run(engine)
