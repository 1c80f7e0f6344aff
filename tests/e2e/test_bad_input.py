"""What bad input gets: one clear sentence, the right status, and a server that goes on serving."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hi"}]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object, which must have OpenAI's shape and no traceback."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return dict(body["error"])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": "word " * 3000}, "prompt", "1023"),
        ({"prompt": [1] * 2000}, "prompt", "1023"),
        ({"prompt": "a", "max_tokens": 5000}, "max_tokens", "1023"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [49152]}, "prompt", "0 to 49151"),
        ({"prompt": [-1]}, "prompt", "0 to 49151"),
        ({"prompt": ["a"] * 200}, "prompt", "128"),
        ({"prompt": "a", "n": 129}, "n", "128"),
        ({"prompt": "a", "n": 0}, "n", "1"),
        ({"prompt": "a", "n": 100}, "n", "64"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "20"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "16"),
        ({"prompt": "a", "stop": "x" * 2000}, "stop", "1024"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "0"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "top_p": 1.01}, "top_p", "1"),
        ({"prompt": "a", "logit_bias": {"49152": 1}}, "logit_bias", "49151"),
        ({"prompt": "a", "stop_token_ids": [10**9]}, "stop_token_ids", "49151"),
        ({"prompt": "a", "top_k": 2**70}, "top_k", "2147483647"),
        ({"prompt": "a", "cache_salt": "s" * 1000}, "cache_salt", "256"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not offered"),
        ({"prompt_embeds": "b", "prompt": "a"}, "prompt_embeds", "not offered"),
        ({}, "prompt", ""),
    ],
)
def test_a_request_out_of_bounds_names_the_field_and_the_limit(
    http: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = http.post("/v1/completions", json={"model": "demo", **fields})
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert error["param"] in (param, None) if not fields else error["param"] == param


def test_chat_messages_over_the_context_or_empty_are_refused(http: httpx.Client) -> None:
    for messages, words in (([], "empty"), ([{"role": "user", "content": "word " * 3000}], "1023")):
        answer = http.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "messages"
        assert words in error_of(answer)["message"]


def test_a_limit_is_named_as_the_client_wrote_it(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": HELLO, "max_completion_tokens": 5000})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "max_completion_tokens")
    assert error_of(answer)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"nothing", b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "top_p": Infinity}', b"\xff"],
)
def test_what_is_not_json_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/completions", content=content)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


def test_a_body_over_the_cap_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", content=b"x" * 200_001)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_headers_over_the_cap_are_refused(http: httpx.Client) -> None:
    try:
        status = http.get("/version", headers={"X-Long": "x" * 1_000_000}).status_code
    except httpx.TransportError:  # the server closes while the client still sends: the answer may be lost
        status = 400
    assert status in (400, 431)
    assert http.get("/version").status_code == 200


def test_an_unknown_model_or_route_is_404_and_a_wrong_method_405(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "gpt", "messages": HELLO})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
    assert "demo" in error_of(answer)["message"]
    assert error_of(http.get("/v1/nothing"))["code"] == "not_found"
    answer = http.get("/v1/chat/completions")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")


def test_the_openai_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="demo", prompt="a", temperature=-1, stream=True)
    assert error.value.param == "temperature"


def test_token_ids_that_do_not_exist_are_not_detokenized(http: httpx.Client) -> None:
    assert error_of(http.post("/detokenize", json={"tokens": [10**6]}))["param"] == "tokens"
    assert error_of(http.post("/tokenize", json={}))["param"] == "prompt"


def test_after_all_of_this_the_server_serves(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", content=json.dumps({"prompt": "a", "max_tokens": 1}))
    assert answer.status_code == 200


def test_text_that_cannot_fit_the_context_is_not_tokenized(http: httpx.Client) -> None:
    long = "word " * 30_000
    for body in ({"prompt": long}, {"messages": [{"role": "user", "content": long}]}):
        answer = http.post("/tokenize", json={"model": "demo", **body})
        assert answer.status_code == 400
        assert "at the very most" in error_of(answer)["message"]
    answer = http.post("/detokenize", json={"model": "demo", "tokens": [1] * 30_000})
    assert answer.status_code == 400
    assert "at most" in error_of(answer)["message"]


def test_messages_do_not_repeat_at_length_what_was_sent(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "m" * 10**5, "prompt": "a"})
    assert answer.status_code == 404
    assert len(error_of(answer)["message"]) < 300
