"""What clients may ask, as the OpenAI API spells it, with vLLM's additions.

Unknown fields are ignored, as clients send all kinds of them. Fields that would change the answer and that
this server does not offer are refused by name, unless they hold the value that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.sampling.params import MAX_LOGPROBS, SamplingParams
from octavo_server.http.body import convert

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, of /v1/completions only
MAX_PROMPTS = 128  # in one request
MAX_SEQUENCES = 256  # prompts times n, in one request
_INT64 = 2**63

Prompt = str | list[int]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both APIs share; null is the same as leaving a field out."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    priority: int | None = None
    cache_salt: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _params(self, **more: Any) -> SamplingParams:
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        return SamplingParams(**{"max_tokens": None, **given, **more})


class ChatCompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def params(self) -> SamplingParams:
        """Raises InvalidRequestError with the field's name as the client wrote it."""
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise InvalidRequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                raise InvalidRequestError(
                    f"top_logprobs must be 0 to {MAX_LOGPROBS}, and is {self.top_logprobs}.",
                    param="top_logprobs",
                )
        more: dict[str, Any] = {}
        if self.logprobs:
            more["logprobs"] = self.top_logprobs or 0
        if self.max_completion_tokens is not None:
            if self.max_completion_tokens < 1:
                raise InvalidRequestError(
                    f"max_completion_tokens must be at least 1, and is {self.max_completion_tokens}.",
                    param="max_completion_tokens",
                )
            more["max_tokens"] = self.max_completion_tokens
        return self._params(**more)


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of /v1/completions."""

    prompt: Any  # text, texts, token ids or lists of token ids: `prompts()` tells them apart
    logprobs: int | None = None
    echo: bool | None = None

    def params(self) -> SamplingParams:
        """`max_tokens` None stands for the default, which depends on the room that the prompt leaves."""
        more: dict[str, Any] = {}
        if self.logprobs is not None:
            more["logprobs"] = self.logprobs
            if self.echo:
                more["prompt_logprobs"] = self.logprobs
        return self._params(**more)

    def prompts(self) -> list[Prompt]:
        """The prompts, in order. Raises InvalidRequestError."""
        prompts = _prompts(self.prompt)
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequestError(
                f"prompt has {len(prompts)} prompts; at most {MAX_PROMPTS} are possible in one request.",
                param="prompt",
            )
        sequences = len(prompts) * (self.n or 1)
        if sequences > MAX_SEQUENCES:
            raise InvalidRequestError(
                f"{len(prompts)} prompts with n = {self.n} are {sequences} completions; "
                f"at most {MAX_SEQUENCES} are possible in one request.",
                param="n",
            )
        return prompts


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]


Asked = TypeVar("Asked", bound=SamplingFields)


def parse(body: dict[str, object], kind: type[Asked]) -> Asked:
    """The body as a request. Raises ApiError or InvalidRequestError, naming the field at fault."""
    _refuse_what_is_not_offered(body, _NOT_OFFERED[kind])
    asked = convert(body, kind)
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequestError("stream_options needs stream to be true.", param="stream_options")
    for name in ("seed", "priority"):
        value = getattr(asked, name)
        if value is not None and not -_INT64 <= value < _INT64:
            raise InvalidRequestError(f"{name} must fit 64 bits, and is {value}.", param=name)
    return asked


_SAMPLING = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
)

# Field -> the values that ask for nothing, null always among them.
_NOT_OFFERED_ANYWHERE: dict[str, tuple[object, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "use_beam_search": (False,),
    "best_of": (1,),
    "prompt_logprobs": (),
}
_NOT_OFFERED: dict[type, dict[str, tuple[object, ...]]] = {
    ChatCompletionRequest: {
        **_NOT_OFFERED_ANYWHERE,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "chat_template": (),
        "documents": ([],),
        "continue_final_message": (False,),
        "add_generation_prompt": (True,),
        "echo": (False,),
    },
    CompletionRequest: {**_NOT_OFFERED_ANYWHERE, "suffix": ("",), "prompt_embeds": (), "add_special_tokens": (True,)},
}


def _refuse_what_is_not_offered(body: Mapping[str, object], table: Mapping[str, tuple[object, ...]]) -> None:
    for name, harmless in table.items():
        value = body.get(name)
        if value is None or value in harmless or (name == "best_of" and value == body.get("n")):
            continue
        raise InvalidRequestError(
            f"{name} is not offered by this server; leave it out.", param=name, code="unsupported_parameter"
        )


def _prompts(value: object) -> list[Prompt]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(entry, str) for entry in value):
            return value
        if _are_token_ids(value):
            return [value]
        if all(isinstance(entry, list) and _are_token_ids(entry) for entry in value):
            return value
    empty = " It is empty." if value == [] or value is None else ""
    raise InvalidRequestError(
        f"prompt takes a string, a list of strings, a list of token ids, or a list of such lists.{empty}",
        param="prompt",
        code="invalid_type",
    )


def _are_token_ids(value: list[object]) -> bool:
    return all(type(entry) is int for entry in value)
