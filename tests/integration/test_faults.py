"""A request that makes a step fail ends alone; a device that is lost ends the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.backend import DeviceLostError
from octavo.engine import Engine, EngineDeadError
from octavo.outputs import RequestUpdate

FIXTURES = Path(__file__).parents[1] / "fixtures"
POISON, DEATH = 42042, 43043  # as the plugin has them
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.syspath_prepend(str(FIXTURES / "faulty_backend"))
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
    for result in llm.generate([[1, 2, 3], [4, 5, 6]], params):
        assert result.error == "The device is lost: fell off the bus."
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        llm.engine.step()


def test_a_lost_device_ends_the_engine_with_the_reason(engine: Engine) -> None:
    engine.add(engine.processor.process("last", [1, DEATH], GREEDY))
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        _run(engine)


def test_what_a_step_gained_before_the_device_was_lost_is_returned_first(engine: Engine) -> None:
    for name, prompt in {"done": [1, 2], "poison": [POISON], "last": [1, DEATH]}.items():
        engine.add(engine.processor.process(name, prompt, replace(GREEDY, max_tokens=1)))
    gained = {update.request_id: update for update in engine.step()}  # the three together fail, and run one by one
    assert set(gained) == {"done", "poison"}
    assert (gained["done"].finished, gained["done"].error) == (True, None)
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        engine.step()


@pytest.fixture
def open_lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LLM]]:
    """Opens engines whose card is lost after so many steps. Nothing closes them: that waits for ever."""
    monkeypatch.syspath_prepend(str(FIXTURES / "lost_backend"))

    def open_lost(steps: int, **options: Any) -> LLM:
        given = {"backend_options": {"steps": str(steps)}, "max_model_len": 64, "warm_up_seconds": 0, **options}
        return LLM("demo", backend="lost", **given)

    yield open_lost
    sys.modules.pop("octavo_lost", None)


def test_a_device_that_is_lost_costs_the_prompts_that_had_finished_nothing(open_lost: Callable[..., LLM]) -> None:
    """Of the three, one has finished, one runs, and one has never been queued, for there is room for one."""
    params = [replace(GREEDY, max_tokens=count) for count in (2, 9, 9)]
    done, running, waiting = open_lost(steps=5, max_num_seqs=1, max_waiting=1).generate([[1, 2], [3, 4], [5]], params)
    assert (done.error, done.finished, done.outputs[0].finish_reason) == (None, True, "length")
    assert len(done.outputs[0].token_ids) == 2
    for result, tokens in ((running, 3), (waiting, 0)):
        assert (result.finished, result.outputs[0].finish_reason) == (True, "error")
        assert result.error == "The device is lost: The card fell off the bus."
        assert len(result.outputs[0].token_ids) == tokens


def test_completions_that_had_finished_keep_their_reason_when_the_device_is_lost(
    open_lost: Callable[..., LLM],
) -> None:
    params = replace(GREEDY, temperature=1.0, n=2, seed=1, max_tokens=9)
    free = open_lost(steps=1000).generate([[1, 2]], params)[0]
    stop = free.outputs[0].token_ids[1]
    assert stop not in free.outputs[1].token_ids[:4]
    llm = open_lost(steps=4)
    (result,) = llm.generate([[1, 2]], replace(params, stop_token_ids=(stop,)))
    assert [output.finish_reason for output in result.outputs] == ["stop", "error"]


def test_a_dead_engine_says_why_at_every_call_and_asks_the_device_no_more(open_lost: Callable[..., LLM]) -> None:
    llm = open_lost(steps=3)
    engine, device = llm.engine, llm.engine._runner._device
    (result,) = llm.generate([[1, 2]], GREEDY)
    assert result.error is not None
    assert device.asked == 1
    request = engine.processor.process("late", [1], GREEDY)
    for call in (engine.step, lambda: engine.add(request), lambda: llm.generate([[1]], GREEDY)):
        with pytest.raises(EngineDeadError) as caught:
            call()
        assert str(caught.value) == result.error
    assert device.asked == 1


def test_a_device_that_is_lost_while_blocks_are_poisoned_ends_the_engine(
    open_lost: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_lost(steps=1000, sanitize=True)
    llm.generate([[1, 2]], GREEDY)

    def lost(*_: object) -> None:
        raise DeviceLostError("gone while poisoning")

    monkeypatch.setattr(llm.engine._runner._device.ops, "write_kv", lost, raising=False)
    llm.engine.reset_prefix_cache()
    assert "gone while poisoning" in str(llm.generate([[1, 2]], GREEDY)[0].error)
