"""What a client asks is parsed strictly; what cannot be had is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo_server.api.messages import plain_messages
from octavo_server.api.requests import MAX_PROMPTS, ChatCompletionRequest, CompletionRequest, parse
from octavo_server.http.errors import ApiError

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse({"messages": HELLO, **fields}, ChatCompletionRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parse({"prompt": "hello", **fields}, CompletionRequest)


def test_unknown_fields_and_nulls_are_ignored() -> None:
    params = chat(user="me", metadata={"a": 1}, temperature=None, stop=None, tools=None).params()
    assert params.temperature == 1.0
    assert params.max_tokens is None


def test_openai_and_vllm_fields_reach_the_sampling_parameters() -> None:
    params = chat(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        stop="end",
        logit_bias={"12": -3},
        logprobs=True,
        top_logprobs=2,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.5,
        ignore_eos=True,
        min_tokens=2,
        stop_token_ids=[3],
        seed=-4,
        n=2,
    ).params()
    assert (params.max_tokens, params.temperature, params.stop, params.logprobs) == (7, 0.0, ("end",), 2)
    assert (params.logit_bias, params.top_k, params.min_p, params.repetition_penalty) == ({12: -3.0}, 5, 0.1, 1.5)
    assert (params.ignore_eos, params.min_tokens, params.stop_token_ids, params.seed, params.n) == (
        True,
        2,
        (3,),
        -4,
        2,
    )


def test_logprobs_without_top_logprobs_reports_the_chosen_tokens() -> None:
    assert chat(logprobs=True).params().logprobs == 0
    assert chat().params().logprobs is None
    assert completion(logprobs=0, echo=True).params().prompt_logprobs == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"best_of": 3}, "best_of"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{param} is not offered") as error:
        chat(**fields)
    assert (error.value.param, error.value.code) == (param, "unsupported_parameter")


def test_values_that_ask_for_nothing_are_taken() -> None:
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, best_of=2, n=2, modalities=["text"])
    completion(suffix="", best_of=1)


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({"max_tokens": "3"}, "max_tokens takes an integer, and got a string.", "max_tokens"),
        ({"n": True}, "n takes an integer, and got true or false.", "n"),
        ({"temperature": "hot"}, "temperature takes a number, and got a string.", "temperature"),
        ({"stop": 3}, "stop takes a string or a list, and got an integer.", "stop"),
        ({"logit_bias": {"x": 1}}, "the keys of logit_bias takes an integer, and got a string.", "logit_bias"),
        ({"messages": "hi"}, "messages takes a list, and got a string.", "messages"),
        ({"stream": 1}, "stream takes true or false, and got an integer.", "stream"),
    ],
)
def test_a_wrong_type_names_the_field(fields: dict[str, Any], sentence: str, param: str) -> None:
    with pytest.raises(ApiError) as error:
        chat(**fields)
    assert (str(error.value), error.value.param, error.value.status) == (sentence, param, 400)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 10**6}, "n"),
        ({"stop": [str(n) for n in range(100)]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"priority": -(2**70)}, "priority"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_value_out_of_range_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        chat(**fields).params()
    assert error.value.param == param


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises((ApiError, InvalidRequestError)):
        chat(temperature=10**400).params()


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_the_four_shapes_of_a_prompt(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize("prompt", [None, [], 3, ["a", 1], [1, "a"], [[1], "a"], [True], [1.5], {"a": 1}])
def test_any_other_shape_of_a_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="prompt takes a string") as error:
        completion(prompt=prompt).prompts()
    assert error.value.param == "prompt"


def test_prompts_and_completions_of_one_request_are_capped() -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_PROMPTS}"):
        completion(prompt=["a"] * (MAX_PROMPTS + 1)).prompts()
    with pytest.raises(InvalidRequestError, match="are 512 completions; at most 256"):
        completion(prompt=["a"] * 8, n=64).prompts()


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "developer", "content": parts, "name": "x"}]) == [
        {"role": "system", "content": "a\nb"}
    ]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "reads text only"),
        ({"role": "tool", "content": "x"}, "offers no tools"),
        ({"role": "king", "content": "x"}, "must be one of system, developer, user, assistant, and is 'king'"),
        ({"role": "user", "content": None}, "takes a string or a list of text parts"),
        ({"role": "user"}, "takes a string or a list of text parts"),
        ({"content": "x"}, "must be one of"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, 'must be {"type": "text"'),
    ],
)
def test_a_message_that_a_text_model_cannot_take_is_refused(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        plain_messages([{"role": "user", "content": "fine"}, message])
    assert sentence in str(error.value)
    assert str(error.value).startswith("messages[1]")
