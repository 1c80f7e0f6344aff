"""On an asynchronous device the engine is a step ahead, and its results are those of the synchronous one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import DeviceLostError
from octavo.engine import Engine, EngineDeadError
from octavo.llm import OutputCollector
from octavo.outputs import RequestOutput
from octavo_conformance.oracles.models import EOS, ModelSpec, tiny_model

ASYNC = Path(__file__).parents[1] / "fixtures" / "async_backend"
POISON, DEATH, REFUSED = 251, 252, 253
FAULTS = {"poison": str(POISON), "death": str(DEATH), "refused": str(REFUSED)}
HARMLESS = {POISON: -100.0, DEATH: -100.0, REFUSED: -100.0}
"""A logit bias under which a request never chooses a token that means a fault."""
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8] * 5, [9], list(range(10, 40)), [4, 5, 6, 7, 8] * 5, [1, 2, 3, 9]]

Open = Callable[..., LLM]


def _params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **options})


GREEDY = _params()


@pytest.fixture
def open_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens engines on a tiny model. An asynchronous device must not have been given a third step before its time."""
    monkeypatch.syspath_prepend(str(ASYNC))
    opened: list[LLM] = []

    def open_llm(backend: str = "async", kv_tokens: int = 1024, **options: Any) -> LLM:
        settings = {"max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 24, "block_size": 4, **options}
        per_token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, KV heads, head size, bytes
        llm = LLM(
            tiny_model(ModelSpec("llama")).directory, backend=backend, dtype="float32",
            kv_cache_memory=(kv_tokens + settings["block_size"]) * per_token,
            check_integrity=True, sanitize=True, warm_up_seconds=0, **settings,
        )  # fmt: skip
        opened.append(llm)
        return llm

    yield open_llm
    for llm in opened:
        device = _device(llm)
        assert getattr(device, "overruns", 0) == 0, "A step was staged while two others were in flight."
        llm.close()
    sys.modules.pop("octavo_async", None)


def _device(llm: LLM) -> Any:
    return llm.engine._runner._device


def _check_equal(results: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> None:
    """Clients are told the same; logprobs may differ by what the order of a sum makes."""
    for result, right in zip(results, expected, strict=True):
        assert result.error == right.error
        assert _logprobs(result.prompt_logprobs) == _nearly(right.prompt_logprobs)
        for mine, other in zip(result.outputs, right.outputs, strict=True):
            assert mine.token_ids == other.token_ids
            assert (mine.text, mine.finish_reason, mine.stop_reason) == (
                other.text,
                other.finish_reason,
                other.stop_reason,
            )
            assert _logprobs(mine.logprobs) == _nearly(other.logprobs)


def _logprobs(entries: Any) -> list[Any]:
    return [entry and {token: each.logprob for token, each in entry.items()} for entry in entries or []]


def _nearly(entries: Any) -> list[Any]:
    return [entry and pytest.approx(entry, abs=1e-4) for entry in _logprobs(entries)]


def _compare(open_llm: Open, params: Any, prompts: Any = PROMPTS, backend: str = "async", **options: Any) -> LLM:
    """The engine on the asynchronous device, which gave what the one on the reference gives."""
    expected = open_llm("reference", **options).generate(prompts, params)
    llm = open_llm(backend, **options)
    results = llm.generate(prompts, params)
    _check_equal(results, expected)
    assert all(result.error is None for result in results)
    assert llm.engine.stats().kv_used_slots == 0
    return llm


@pytest.mark.parametrize("backend", ["async", "async-static"])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        _params(temperature=1.0, seed=7, max_tokens=20),
        _params(temperature=0.9, seed=3, n=3, top_p=0.9),
        _params(n=4, max_tokens=1),
        _params(prompt_logprobs=2, logprobs=3),
        _params(prompt_logprobs=0, n=2, temperature=1.0, seed=2),
        _params(min_tokens=9, ignore_eos=False, logit_bias={EOS: 100.0}),
        _params(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2),
        _params(logit_bias={7: 5.0, 8: -100.0}),
    ],
    ids=["greedy", "seeded", "n=3", "max_tokens=1", "logprobs", "prompt_logprobs", "min_tokens", "penalties", "bias"],
)  # fmt: skip
def test_results_are_those_of_the_synchronous_engine(open_llm: Open, backend: str, params: SamplingParams) -> None:
    _compare(open_llm, params, backend=backend)


def test_a_mixed_crowd_in_a_small_pool_gets_what_it_gets_from_the_synchronous_engine(open_llm: Open) -> None:
    dice = np.random.default_rng(5)
    prompts = [dice.integers(0, 200, dice.integers(1, 40)).tolist() for _ in range(24)]
    params = [
        _params(
            n=1 + index % 3,
            temperature=float(index % 2),
            seed=index,
            max_tokens=1 + 5 * (index % 5),
            frequency_penalty=0.5 * (index % 7 == 0),
            prompt_logprobs=0 if index % 5 == 0 else None,
            ignore_eos=index % 4 != 0,
        )
        for index in range(len(prompts))
    ]
    llm = _compare(open_llm, params, prompts, kv_tokens=96, max_model_len=80)
    assert llm.engine.stats().num_preemptions > 0


@pytest.mark.parametrize("caching", [True, False])
def test_preempted_requests_give_the_tokens_of_the_synchronous_engine(open_llm: Open, caching: bool) -> None:
    prompts = [[index, 50, 60, 70, 80, 90, 91] for index in range(8)]
    params = [_params(max_tokens=24, temperature=1.0, seed=seed, n=1 + seed % 2) for seed in range(8)]
    options = {"kv_tokens": 72, "max_model_len": 64, "enable_prefix_caching": caching}
    llm = _compare(open_llm, params, prompts, **options)
    assert llm.engine.stats().num_preemptions > 0


def test_prompts_that_share_a_prefix_read_blocks_that_are_still_being_computed(open_llm: Open) -> None:
    prompts = {str(index): [*range(100, 140), index] for index in range(4)}
    expected = open_llm("reference").generate(list(prompts.values()), GREEDY)
    engine = open_llm(max_num_batched_tokens=16, max_num_seqs=4).engine
    process = engine.processor.process
    engine.add(process("0", prompts["0"], GREEDY))

    def add_another(steps: int) -> None:  # while the one before it is computed
        if steps % 2 == 0 and str(steps // 2) in prompts:
            engine.add(process(str(steps // 2), prompts[str(steps // 2)], GREEDY))

    results = _run(engine, prompts, add_another)
    _check_equal([results[name] for name in prompts], expected)
    assert engine.stats().prefix_cache_hits >= 3 * 16


def test_a_completion_that_ends_in_the_middle_wastes_one_row_and_nothing_else(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=4)
    free = llm.generate(PROMPTS[0], _params(max_tokens=24))[0].outputs[0]
    stop = next(token for index, token in enumerate(free.token_ids) if index == free.token_ids.index(token) > 4)
    length = free.token_ids.index(stop) + 1
    steps = _device(llm).steps
    output = llm.generate(PROMPTS[0], _params(max_tokens=24, stop_token_ids=(stop,)))[0].outputs[0]
    assert (output.token_ids, output.finish_reason, output.stop_reason) == (free.token_ids[:length], "stop", stop)
    assert _device(llm).steps == steps + length + 1
    assert not llm.engine.has_work
    assert llm.engine.stats().kv_used_slots == 0
    assert llm.generate(PROMPTS[0], _params(max_tokens=24))[0].outputs[0].token_ids == free.token_ids


def test_stop_strings_and_ends_of_sequence_in_a_crowd(open_llm: Open) -> None:
    free = open_llm("reference").generate(PROMPTS, _params(max_tokens=24, temperature=1.0, seed=11))
    params = [_params(max_tokens=24, temperature=1.0, seed=11, stop=(_piece(each),)) for each in free]
    likely = {"temperature": 1.0, "max_tokens": 40, "ignore_eos": False, "logit_bias": {EOS: 3.0}}
    llm = _compare(open_llm, params + [_params(seed=seed, **likely) for seed in range(6)], PROMPTS + PROMPTS)
    assert llm.engine.stats().requests_finished["stop"] >= 8


def _piece(result: RequestOutput) -> str:
    text = result.outputs[0].text
    return text[len(text) // 2 : len(text) // 2 + 2]


def test_the_next_step_is_launched_before_the_last_one_is_read(open_llm: Open) -> None:
    llm = open_llm()
    llm.generate(PROMPTS[:2], _params(max_tokens=10))
    device = _device(llm)
    assert device.steps == 11  # one prompt takes a second chunk
    assert device.ahead == device.steps - 1


def test_sampled_ids_are_fed_back_on_the_device(open_llm: Open) -> None:
    llm = open_llm()
    llm.generate(PROMPTS[0], _params(max_tokens=10, n=2, temperature=1.0, seed=1))
    first, *decodes = _device(llm).staged
    assert first.feedback.lane_of_token.tolist() == [-1, -1, -1]
    assert len(decodes) == 9
    for inputs in decodes:
        assert inputs.token_ids.tolist() == [0, 0]
        assert sorted(inputs.feedback.lane_of_token.tolist()) == [0, 1]
        assert not isinstance(inputs.feedback.last_tokens, np.ndarray)  # on the device, never uploaded
        assert inputs.feedback.last_tokens.index == decodes[-1].feedback.last_tokens.index
        for array in (inputs.feedback.lane_of_token, inputs.feedback.row_of_lane):
            assert array.dtype == np.int32


@pytest.mark.parametrize(
    ("options", "ahead"),
    [({"repetition_penalty": 1.2}, 0), ({"presence_penalty": 0.5}, 0), ({"min_tokens": 5, "ignore_eos": False}, 9)],
)
def test_only_rows_that_depend_on_the_last_token_wait_for_it(
    open_llm: Open, options: dict[str, Any], ahead: int
) -> None:
    llm = open_llm()
    llm.generate(PROMPTS[0], _params(max_tokens=10, logit_bias={EOS: -100.0}, **options))
    assert (_device(llm).steps, _device(llm).ahead) == (10, ahead)


def test_a_crowd_is_ahead_again_once_the_row_that_waits_has_ended(open_llm: Open) -> None:
    llm = open_llm()
    llm.generate([[1], [2]], [_params(max_tokens=4, repetition_penalty=1.2), _params(max_tokens=12)])
    assert _device(llm).ahead == 12 - 1 - 4


def test_feedback_needs_nothing_but_the_array_api_standard(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ASYNC.parent / "strict_backend"))
    strict = import_module("octavo_strict").StrictDevice
    claims = replace(strict.info.capabilities, asynchronous=True, block_sizes=(4,))
    monkeypatch.setattr(strict, "info", replace(strict.info, capabilities=claims))
    _compare(open_llm, _params(temperature=1.0, seed=2, n=2, max_tokens=6), PROMPTS[:3], "strict")
    sys.modules.pop("octavo_strict", None)


def test_a_host_device_stays_synchronous(open_llm: Open) -> None:
    llm = open_llm("reference")
    llm.engine.add(llm.engine.processor.process("a", [1, 2], GREEDY))
    (update,) = llm.engine.step()
    assert update.sequences[0].token_ids


# ----------------------------------------------------------------------------------------------------------- aborts


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 3])
def test_an_abort_in_flight_ends_the_request_and_leaves_the_others_alone(open_llm: Open, steps: int, n: int) -> None:
    expected = open_llm("reference").generate([[5, 6, 7]], _params(max_tokens=20))[0].outputs[0].token_ids
    llm = open_llm()
    engine = llm.engine
    engine.add(engine.processor.process("gone", [1, 2, 3], _params(max_tokens=60, n=n)))
    engine.add(engine.processor.process("stays", [5, 6, 7], _params(max_tokens=20)))
    before = [update for _ in range(steps) for update in engine.step()]
    assert engine.abort("gone")
    engine.add(engine.processor.process("gone", [8, 9], _params(max_tokens=4)))  # the name is free at once
    updates = engine.step()
    gone = [update for update in updates if update.request_id == "gone"]
    assert [update.finished for update in gone] == [True]
    assert {part.finish_reason for part in gone[0].sequences} == {"abort"}
    tokens = [update for update in before + updates if update.request_id == "stays"]
    while engine.has_work:
        tokens += [update for update in engine.step() if update.request_id == "stays"]
    assert [token for update in tokens for part in update.sequences for token in part.token_ids] == expected
    assert engine.stats().kv_used_slots == 0


def test_everything_aborted_leaves_no_work_after_one_step(open_llm: Open) -> None:
    engine = open_llm().engine
    engine.add(engine.processor.process("gone", [1, 2, 3], _params(max_tokens=60)))
    for _ in range(4):
        engine.step()
    engine.abort("gone")
    assert [update.request_id for update in engine.step()] == ["gone"]
    assert not engine.has_work
    assert engine.stats().kv_used_slots == 0
    assert engine.step() == []


def test_the_prefix_cache_may_be_reset_in_flight(open_llm: Open) -> None:
    prompts = {"a": PROMPTS[1], "b": PROMPTS[4]}
    expected = open_llm("reference").generate(list(prompts.values()), GREEDY)
    engine = open_llm(max_num_batched_tokens=10).engine
    for name, prompt in prompts.items():
        engine.add(engine.processor.process(name, prompt, GREEDY))
    results = _run(engine, prompts, lambda steps: engine.reset_prefix_cache() if steps % 3 == 0 else None)
    _check_equal([results[name] for name in prompts], expected)


# ----------------------------------------------------------------------------------------------------------- faults


def _run(
    engine: Engine, prompts: dict[str, list[int]], meanwhile: Callable[[int], object] = lambda steps: None
) -> dict[str, RequestOutput]:
    """Step to the end; the results of requests that were added under these names."""
    collectors = {
        name: OutputCollector(engine.processor.process(name, prompt, GREEDY)) for name, prompt in prompts.items()
    }
    steps = 0
    while engine.has_work:
        steps += 1
        assert steps < 1000
        for update in engine.step():
            collectors[update.request_id].add(update)
        meanwhile(steps)
    return {name: collector.output for name, collector in collectors.items()}


FAULTY_PROMPTS = {
    "found when it has run": [5, POISON, 6],
    "found when it is launched": [5, REFUSED, 6],
}


@pytest.mark.parametrize("prompt", FAULTY_PROMPTS.values(), ids=FAULTY_PROMPTS)
@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_only_the_request_at_fault_ends(open_llm: Open, prompt: list[int], when: int) -> None:
    good = {"one": [1, 2, 3], "two": [1, 2, 3, 4, 5, 6, 7], "three": [8] * 30}
    ways: dict[str, dict[str, Any]] = {
        "one": {}, "two": {"temperature": 1.0, "seed": 4, "n": 3}, "three": {"prompt_logprobs": 0}
    }  # fmt: skip
    params = {name: _params(logit_bias=HARMLESS, **options) for name, options in ways.items()}
    expected = open_llm("reference").generate(list(good.values()), [params[name] for name in good])
    engine = open_llm(backend_options=FAULTS).engine
    for name in good:
        engine.add(engine.processor.process(name, good[name], params[name]))
    collectors = {name: OutputCollector(engine.processor.process(name, good[name], params[name])) for name in good}
    collectors["bad"] = OutputCollector(engine.processor.process("bad", prompt, GREEDY))
    steps = 0
    while engine.has_work or steps <= when:
        if steps == when:
            engine.add(engine.processor.process("bad", prompt, GREEDY))
        for update in engine.step():
            collectors[update.request_id].add(update)
        steps += 1
        assert steps < 1000
    assert [collectors[name].output.error for name in good] == [None] * 3
    _check_equal([collectors[name].output for name in good], expected)
    bad = collectors["bad"].output
    assert bad.error is not None
    assert [output.finish_reason for output in bad.outputs] == ["error"]
    assert engine.stats().kv_used_slots == 0


def test_a_fault_in_a_token_that_only_the_device_knows_ends_its_request(open_llm: Open) -> None:
    llm = open_llm(backend_options=FAULTS)
    forced, harmless = _params(logit_bias={POISON: 100.0}, n=2), _params(logit_bias=HARMLESS)
    expected = open_llm("reference").generate([[1, 2, 3]], harmless)[0].outputs[0].token_ids
    bad, good = llm.generate([[4, 5], [1, 2, 3]], [forced, harmless])
    assert bad.error is not None
    assert "poisoned" in bad.error
    assert {output.finish_reason for output in bad.outputs} == {"error"}
    assert good.error is None
    assert good.outputs[0].token_ids == expected
    assert _device(llm).ahead > 5  # it goes on a step ahead


@pytest.mark.parametrize("backend", ["async", "reference"])
def test_a_step_that_fails_once_costs_nobody_a_token(
    open_llm: Open, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = _params(temperature=1.0, seed=1, n=2, prompt_logprobs=0)
    expected = open_llm("reference").generate(PROMPTS, params)
    llm = open_llm(backend)
    device = _device(llm)
    download, calls = device.download, []

    def fails_once(array: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("a bit flipped")
        return download(array)

    monkeypatch.setattr(device, "download", fails_once)
    _check_equal(llm.generate(PROMPTS, params), expected)


def test_a_lost_device_ends_the_engine_with_the_reason(open_llm: Open) -> None:
    engine = open_llm(backend_options=FAULTS).engine
    engine.add(engine.processor.process("good", [1, 2, 3], _params(max_tokens=60, logit_bias=HARMLESS)))
    for _ in range(3):
        engine.step()
    engine.add(engine.processor.process("last", [1, DEATH], GREEDY))
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        _run(engine, {"good": [1], "last": [1]})


def test_a_device_that_is_lost_while_a_step_is_launched_ends_the_engine(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm()
    engine = llm.engine
    engine.add(engine.processor.process("good", [1, 2, 3], _params(max_tokens=60)))
    for _ in range(3):
        engine.step()

    def lost(*_: object) -> None:
        raise DeviceLostError("gone while staging")

    monkeypatch.setattr(_device(llm), "stage", lost)
    with pytest.raises(EngineDeadError, match="gone while staging"):
        _run(engine, {"good": [1]})
