"""The OpenAI client against a real server with the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import openai

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = "One, two, three, four, five, six, seven, eight, nine, ten, eleven,"


def test_the_demo_model_knows_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("The capital of France is Paris.", "stop")
    assert choice.message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 8


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_null_or_absent_as_asked_and_done_ends_the_stream(http: httpx.Client) -> None:
    body = {"model": "demo", "messages": QUESTION, "stream": True, "max_tokens": 2, "temperature": 0}
    events = http.post("/v1/chat/completions", json=body).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event[6:]) for event in events[:-1])
    events = http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}).text
    chunks = [json.loads(event[6:]) for event in events.strip().split("\n\n")[:-1]]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_streamed_completion_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt=COUNT, temperature=0, max_tokens=6)
    chunks = client.completions.create(model="demo", prompt=COUNT, temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"


def test_completions_default_to_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=COUNT, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_a_stop_string_that_straddles_tokens_is_found_and_left_out(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt=COUNT, temperature=0, max_tokens=12).choices[0].text
    middle = len(whole) // 2
    stop = whole[middle - 3 : middle + 3]  # six characters of running text cross a token's edge
    expected = whole[: whole.index(stop)]
    answer = client.completions.create(model="demo", prompt=COUNT, temperature=0, max_tokens=12, stop=stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
    chunks = list(
        client.completions.create(
            model="demo", prompt=COUNT, temperature=0, max_tokens=12, stop=["never", stop], stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_n_gives_so_many_choices_that_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(
            model="demo", messages=QUESTION, n=4, temperature=1.5, seed=7, max_tokens=8
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_streamed_choices_are_told_apart_by_index(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(
        model="demo", prompt=[COUNT, "The sky is"], temperature=0, max_tokens=4, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    whole = client.completions.create(model="demo", prompt=[COUNT, "The sky is"], temperature=0, max_tokens=4)
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_chat_logprobs_parse_and_greedy_takes_the_best(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    for token in logprobs.content:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def test_completion_logprobs_with_echo_cover_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="The sky is", temperature=0, max_tokens=2, logprobs=2, echo=True
    )
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert choice.text.startswith("The sky is")
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.token_logprobs[0] is None
    assert all(value is not None for value in logprobs.token_logprobs[1:])
    offsets = logprobs.text_offset or []
    assert [choice.text[offset:].startswith(token) for offset, token in zip(offsets, logprobs.tokens, strict=True)]
    chunks = client.completions.create(
        model="demo", prompt="The sky is", temperature=0, max_tokens=2, logprobs=2, echo=True, stream=True
    )
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for part in streamed if part for token in part.tokens or []] == logprobs.tokens
    assert [offset for part in streamed if part for offset in part.text_offset or []] == offsets


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "Hello wörld", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 1024
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "Hello wörld"}
    chat = http.post("/tokenize", json={"messages": QUESTION}).json()
    completion = http.post(
        "/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 1, "temperature": 0}
    ).json()
    assert chat["count"] == completion["usage"]["prompt_tokens"]


def test_token_ids_are_a_prompt_too(client: openai.OpenAI, http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": COUNT}).json()["tokens"]
    by_text = client.completions.create(model="demo", prompt=COUNT, temperature=0, max_tokens=3)
    by_ids = client.completions.create(model="demo", prompt=[tokens, tokens], temperature=0, max_tokens=3)
    assert [choice.text for choice in by_ids.choices] == [by_text.choices[0].text] * 2


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_probes_and_version_answer(http: httpx.Client) -> None:
    assert [http.get(path).status_code for path in ("/health", "/ready", "/version", "/metrics")] == [200] * 4


def test_salts_keep_tenants_apart_in_the_prefix_cache(client: openai.OpenAI) -> None:
    prompt = "A long beginning that fills several blocks of the cache, " * 8

    def cached(salt: str) -> int:
        answer = client.completions.create(
            model="demo", prompt=prompt, temperature=0, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("tenant one") == 0
    assert cached("tenant two") == 0
    assert cached("tenant one") > 0


def test_a_client_that_goes_away_frees_its_blocks(server: Any, eventually: Callable[[Callable[[], Any]], Any]) -> None:
    body = {"prompt": COUNT, "max_tokens": 900, "ignore_eos": True, "n": 2}
    with server.http() as leaving, leaving.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        next(stream.iter_lines())
        eventually(lambda: server.metric("kv_cache_allocated_slots") > 0)
    eventually(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_cache_allocated_slots") == 0
    # And one that waits for a whole answer, where nothing is being sent that could fail.
    with server.http() as leaving, suppress(httpx.ReadTimeout):
        leaving.post("/v1/completions", json=body, timeout=httpx.Timeout(240, read=3))
    eventually(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_cache_allocated_slots") == 0
