"""What a request may ask for, and what it gets: lengths, stops, logprobs, penalties, n, aborts, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError, QueueFullError

from .conftest import Oracle

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", backend="cpu", dtype="float32", max_model_len=512, max_num_seqs=16, check_integrity=True)


def _greedy(**options: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **options)


def test_chat_answers_the_question(llm: LLM) -> None:
    output = llm.chat(CHAT, _greedy(max_tokens=32))[0].outputs[0]
    assert output.text == "The capital of France is Paris."
    assert output.finish_reason == "stop"


def test_text_is_the_decoded_tokens(llm: LLM) -> None:
    result = llm.generate("Some emoji: 🙂🙃 and 日本", _greedy(max_tokens=40, ignore_eos=True))[0]
    assert result.outputs[0].text == llm.tokenizer.decode(result.outputs[0].token_ids)
    assert result.outputs[0].finish_reason == "length"
    assert len(result.outputs[0].token_ids) == 40


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    free = llm.generate("Count: 1, 2, 3,", _greedy(max_tokens=32, ignore_eos=True))[0].outputs[0]
    stop = free.text[7:12]  # across the borders of tokens
    output = llm.generate("Count: 1, 2, 3,", _greedy(max_tokens=32, ignore_eos=True, stop=(stop,)))[0].outputs[0]
    assert output.text == free.text[: free.text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_a_stop_token_ends_the_completion(llm: LLM) -> None:
    free = llm.generate("Count: 1, 2, 3,", _greedy(max_tokens=16, ignore_eos=True))[0].outputs[0]
    token = free.token_ids[5]
    first = free.token_ids.index(token)
    output = llm.generate("Count: 1, 2, 3,", _greedy(max_tokens=16, stop_token_ids=(token,)))[0].outputs[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", token)


def test_min_tokens_holds_off_the_end(llm: LLM) -> None:
    short = llm.chat(CHAT, _greedy(max_tokens=40))[0].outputs[0]
    long = llm.chat(CHAT, _greedy(max_tokens=40, min_tokens=30))[0].outputs[0]
    assert len(short.token_ids) < 30 <= len(long.token_ids)


def test_logprobs_are_those_of_transformers(llm: LLM, oracle: Oracle) -> None:
    result = llm.generate("The capital of France is", _greedy(max_tokens=6, logprobs=5, ignore_eos=True))[0]
    output = result.outputs[0]
    assert output.logprobs is not None
    tokens = [*result.prompt_token_ids, *output.token_ids]
    expected = oracle.logits(tokens).log_softmax(-1)[len(result.prompt_token_ids) - 1 :]
    for row, token, entry in zip(expected, output.token_ids, output.logprobs, strict=False):
        best = row.topk(5)
        assert next(iter(entry)) == token
        assert set(entry) == {token, *best.indices.tolist()}
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(row[other]), abs=2e-3)
            assert logprob.rank == 1 + int((row > row[other]).sum())
    assert output.cumulative_logprob == pytest.approx(
        sum(float(row[token]) for row, token in zip(expected, output.token_ids, strict=False)), abs=5e-3
    )


@pytest.mark.parametrize("budget", [512, 16])
def test_prompt_logprobs_are_those_of_transformers(llm: LLM, oracle: Oracle, budget: int) -> None:
    engine = llm if budget == 512 else LLM("demo", backend="cpu", max_num_seqs=4, max_num_batched_tokens=budget)
    prompt = (
        "A library is more than a building with books. It is a promise that what one person learned, another may learn."
    )
    engine.generate(prompt, _greedy(max_tokens=1))  # fills the prefix cache, which must not be read here
    result = engine.generate(prompt, _greedy(max_tokens=2, prompt_logprobs=2))[0]
    assert result.prompt_logprobs is not None
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)
    assert result.prompt_logprobs[0] is None
    expected = oracle.logits(result.prompt_token_ids).log_softmax(-1)
    for row, token, entry in zip(expected, result.prompt_token_ids[1:], result.prompt_logprobs[1:], strict=False):
        assert entry is not None
        assert entry[token].logprob == pytest.approx(float(row[token]), abs=2e-3)
        assert len(entry) in (2, 3)


def test_n_completions_share_the_prompt(llm: LLM) -> None:
    result = llm.generate("One day the", SamplingParams(temperature=1.0, n=4, seed=3, max_tokens=12, ignore_eos=True))[
        0
    ]
    assert [output.index for output in result.outputs] == [0, 1, 2, 3]
    assert all(len(output.token_ids) == 12 for output in result.outputs)
    greedy = llm.generate("One day the", _greedy(n=3, max_tokens=12))[0]
    assert len({output.text for output in greedy.outputs}) == 1


def test_logit_bias_and_penalties_change_the_choice(llm: LLM) -> None:
    prompt = "The capital of France is"
    first = llm.generate(prompt, _greedy(max_tokens=1))[0].outputs[0].token_ids[0]
    banned = llm.generate(prompt, _greedy(max_tokens=1, logit_bias={first: -100.0}))[0].outputs[0].token_ids[0]
    forced = (
        llm.generate(prompt, _greedy(max_tokens=4, ignore_eos=True, logit_bias={42: 100.0}))[0].outputs[0].token_ids
    )
    assert banned != first
    assert forced == [42] * 4
    loop = llm.generate("la la la la la", _greedy(max_tokens=24, ignore_eos=True))[0].outputs[0].token_ids
    varied = llm.generate("la la la la la", _greedy(max_tokens=24, ignore_eos=True, frequency_penalty=2.0))[0]
    assert len(set(varied.outputs[0].token_ids)) > len(set(loop))


def test_an_aborted_request_frees_its_blocks(llm: LLM) -> None:
    engine = llm.engine
    engine.add(engine.processor.process("gone", "Tell me a long story.", _greedy(max_tokens=200, ignore_eos=True)))
    for _ in range(5):
        engine.step()
    assert engine.stats().kv_used_slots > 0
    assert engine.abort("gone")
    assert not engine.abort("gone")
    updates = engine.step()
    assert [(update.request_id, update.finished) for update in updates] == [("gone", True)]
    assert updates[0].sequences[0].finish_reason == "abort"
    assert engine.stats().kv_used_slots == 0
    assert not engine.has_work


def test_the_queue_is_bounded() -> None:
    engine = LLM("demo", backend="cpu", max_waiting=2, max_model_len=64).engine
    for index in range(2):
        engine.add(engine.processor.process(str(index), "Hello", _greedy(max_tokens=2)))
    with pytest.raises(QueueFullError, match="max_waiting is 2"):
        engine.add(engine.processor.process("one too many", "Hello", _greedy(max_tokens=2)))
    while engine.has_work:
        engine.step()


def test_a_long_list_of_prompts_is_fed_through_a_short_queue() -> None:
    llm = LLM("demo", backend="cpu", max_waiting=2, max_num_seqs=4, max_model_len=64)
    results = llm.generate([f"Number {index}" for index in range(12)], _greedy(max_tokens=2))
    assert [result.prompt for result in results] == [f"Number {index}" for index in range(12)]


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ("", {}, "The prompt is empty"),
        ([], {}, "The prompt is empty"),
        ([1, 2, 49152], {}, "token id 49152; this model's token ids are 0 to 49151"),
        ([1, -1], {}, "token id -1"),
        ("word " * 600, {}, "the longest prompt that fits is 511 tokens"),
        ([5] * 500, {"max_tokens": 13}, "the largest max_tokens that fits is 12"),
        ("x" * 2_000_000, {}, "at the very most"),
        ("Hi", {"n": 17}, "at most 16 sequences at a time"),
        ("Hi", {"logit_bias": {50000: 1.0}}, "logit_bias holds token id 50000"),
        ("Hi", {"stop_token_ids": (50000,)}, "stop_token_ids holds token id 50000"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_with_a_sentence(
    llm: LLM, prompt: Any, options: Any, sentence: str
) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        llm.generate([prompt], SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **options}))
    assert llm.generate("Hi", _greedy(max_tokens=1))[0].finished


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature takes a finite number"),
        ({"top_p": 0.0}, "top_p must be greater than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be at most 1"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 1000}, "n must be at most 128"),
        ({"logprobs": 21}, "logprobs must be at most 20"),
        ({"stop": ("",)}, "stop takes non-empty strings"),
        ({"stop": ("a",) * 17}, "at most 16 are possible"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens is 5, more than max_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be greater than 0"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias takes a finite number"),
        ({"presence_penalty": 3}, "presence_penalty must be at most 2"),
        ({"seed": 1.5}, "seed takes an integer"),
        ({"seed": True}, "seed takes an integer"),
        ({"seed": 10**5000}, "seed must be at most"),
        ({"top_k": 2**70}, "top_k must be at most 2147483647"),
        ({"temperature": 10**400}, "temperature takes a number of reasonable size"),
        ({"stop": 5}, "stop takes a list"),
        ({"stop_token_ids": 7}, "stop_token_ids takes a list"),
        ({"logit_bias": [1]}, "logit_bias takes a mapping"),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        SamplingParams(**options)


def test_metrics_are_in_order(llm: LLM) -> None:
    metrics = llm.generate("Hello", _greedy(max_tokens=4))[0].metrics
    assert metrics is not None
    times = [metrics.arrival_time, metrics.first_scheduled_time, metrics.first_token_time, metrics.finished_time]
    assert all(time is not None for time in times)
    assert list(np.argsort(times, kind="stable")) == [0, 1, 2, 3]


def test_a_step_with_more_rows_of_logits_than_are_kept_at_a_time_reports_them_all(llm: LLM, oracle: Oracle) -> None:
    prompt = llm.tokenizer.encode("One and two and three and four. " * 60)[:400]
    result = llm.generate(prompt, _greedy(max_tokens=3, prompt_logprobs=0, ignore_eos=True))[0]
    assert result.prompt_logprobs is not None
    expected = oracle.logits(prompt).log_softmax(-1)
    for row, token, entry in zip(expected, prompt[1:], result.prompt_logprobs[1:], strict=False):
        assert entry is not None
        assert entry[token].logprob == pytest.approx(float(row[token]), abs=2e-3)
    plain = llm.generate(prompt, _greedy(max_tokens=3, ignore_eos=True))[0]
    assert result.outputs[0].token_ids == plain.outputs[0].token_ids


def test_token_ids_that_the_weights_do_not_have_are_refused_also_from_text(llm: LLM) -> None:
    llm.tokenizer.backend_tokenizer.add_tokens(["[BEYOND]"])
    with pytest.raises(InvalidRequestError, match=r"becomes token id 49152.*its tokenizer knows tokens"):
        llm.generate("[BEYOND] hi", _greedy(max_tokens=1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda llm: llm.chat("Hi"), "Message 0 is str"),
        (lambda llm: llm.chat(["Hi"]), "Message 0 is str"),
        (lambda llm: llm.generate([None]), "A prompt is text or a list of token ids, and this one is NoneType"),
        (lambda llm: llm.generate([{"prompt": "x"}]), "A prompt is text or a list of token ids, and this one is dict"),
        (lambda llm: llm.generate("\ud800"), "half of a surrogate pair at character 0"),
        (lambda llm: llm.chat([{"role": "user", "content": "a\ud800"}]), "half of a surrogate pair"),
        (lambda llm: llm.generate(["a", "b"], priority=[0, "x"]), "priority takes an integer"),
        (lambda llm: llm.generate(["a", "b"], priority=[0]), "There are 2 prompts and 1 priorities"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_with_a_sentence(llm: LLM, call: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        call(llm)
    assert not llm.engine.has_work


def test_prompts_may_be_numpy_arrays(llm: LLM) -> None:
    plain = llm.generate([[504, 3575, 282]], _greedy(max_tokens=2))[0].outputs[0].token_ids
    assert llm.generate([np.array([504, 3575, 282])], _greedy(max_tokens=2))[0].outputs[0].token_ids == plain


def test_counters_count_requests_and_their_prompts_once() -> None:
    llm = LLM("demo", backend="cpu", kv_cache_memory="8MiB", max_model_len=128, check_integrity=True)
    prompts = ["Write three words about the sea:"] * 10
    params = SamplingParams(temperature=1.0, n=2, max_tokens=40, ignore_eos=True)
    results = llm.generate(prompts, params)
    stats = llm.engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prompt_tokens == sum(len(result.prompt_token_ids) for result in results)
    assert stats.generation_tokens == 10 * 2 * 40
    assert stats.requests_finished == {"length": 10}


def test_a_long_list_survives_a_queue_that_preemption_overfills() -> None:
    llm = LLM("demo", backend="cpu", max_waiting=2, kv_cache_memory="8MiB", max_model_len=128, check_integrity=True)
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    results = llm.generate([f"Number {index} is" for index in range(12)], params)
    assert llm.engine.stats().num_preemptions > 0
    assert all(len(result.outputs[0].token_ids) == 60 for result in results)
