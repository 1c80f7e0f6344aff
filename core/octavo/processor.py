"""From what a client sends to what the engine runs: tokenized, validated and capped once, for every front end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.errors import InvalidRequestError
from octavo.models.tokenizer import Tokenizer
from octavo.sampling.params import SamplingParams

MAX_REQUEST_ID_LENGTH = 256
MAX_CACHE_SALT_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of this engine."""

    max_model_len: int
    vocab_size: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request that has passed validation; plain data, fit for a message.

    params.max_tokens is a number. priority: lower runs first. cache_salt: requests share prefix-cache blocks only with
    those of the same salt. arrival_time: `time.time()` seconds.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    prompt: str | None = None
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0


class RequestProcessor:
    """Validates requests against one engine's limits. Every method raises InvalidRequestError."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self.tokenizer = tokenizer
        self.limits = limits

    def process(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> EngineRequest:
        """A request from text or token ids."""
        if isinstance(prompt, str):
            return self._request(request_id, prompt, self._encode(prompt), params, priority, cache_salt)
        return self._request(request_id, None, self._checked(prompt), params, priority, cache_salt)

    def process_chat(
        self,
        request_id: str,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> EngineRequest:
        """A request from chat messages, through the checkpoint's own template."""
        if not messages:
            raise InvalidRequestError("messages is empty; at least one message is needed.", param="messages")
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise InvalidRequestError(
                    f"Message {index} is {type(message).__name__}; each message has a role and a content.",
                    param="messages",
                )
        self.check_characters("messages", sum(len(str(message.get("content", ""))) for message in messages))
        token_ids = self.tokenizer.apply_chat_template(messages, **(chat_template_kwargs or {}))
        return self._request(request_id, None, token_ids, params, priority, cache_salt, param="messages")

    def check_characters(self, param: str, characters: int) -> None:
        """Bound the tokenizer's work: text longer than this cannot fit the context, whatever it says."""
        most = self.limits.max_model_len * self.tokenizer.longest_token
        if characters > most:
            raise InvalidRequestError(
                f"{param} has {characters} characters; a context of {self.limits.max_model_len} tokens holds "
                f"{most} at the very most.",
                param=param,
                code="context_length_exceeded",
            )

    # ---------------------------------------------------------------------------------------------------- details

    def _encode(self, prompt: str) -> list[int]:
        self.check_characters("prompt", len(prompt))
        return self.tokenizer.encode(prompt)

    def _checked(self, prompt: Sequence[int]) -> list[int]:
        if isinstance(prompt, Mapping) or not (hasattr(prompt, "__len__") and hasattr(prompt, "__iter__")):
            raise InvalidRequestError(
                f"A prompt is text or a list of token ids, and this one is {type(prompt).__name__}.", param="prompt"
            )
        if len(prompt) > self.limits.max_model_len:
            self._too_long(len(prompt), "prompt")
        return [self._token("prompt", token) for token in prompt]

    def _token(self, param: str, token: object) -> int:
        """The token id as a plain int; NumPy's integers are fine."""
        size = self.limits.vocab_size
        if isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= token < size:
            return int(token)
        raise InvalidRequestError(
            f"{param} holds token id {_shown(token)}; this model's token ids are 0 to {size - 1}.", param=param
        )

    def _too_long(self, tokens: int, param: str) -> None:
        context = self.limits.max_model_len
        raise InvalidRequestError(
            f"The prompt has {tokens} tokens; the context of this model here is {context} tokens, and a completion "
            f"needs at least one: the longest prompt that fits is {context - 1} tokens.",
            param=param,
            code="context_length_exceeded",
        )

    def _request(
        self,
        request_id: str,
        prompt: str | None,
        token_ids: list[int],
        params: SamplingParams,
        priority: int,
        cache_salt: str,
        param: str = "prompt",
    ) -> EngineRequest:
        limits = self.limits
        if not request_id or len(request_id) > MAX_REQUEST_ID_LENGTH:
            raise InvalidRequestError(
                f"A request id has 1 to {MAX_REQUEST_ID_LENGTH} characters, and this one has {len(request_id)}.",
                param="request_id",
            )
        if not token_ids:
            raise InvalidRequestError("The prompt is empty; at least one token is needed.", param=param)
        if (largest := max(token_ids)) >= limits.vocab_size:
            raise InvalidRequestError(
                f"The {param} becomes token id {largest}, and this model's token ids are 0 to {limits.vocab_size - 1}: "
                "its tokenizer knows tokens that its weights do not.",
                param=param,
            )
        room = limits.max_model_len - len(token_ids)
        if room < 1:
            self._too_long(len(token_ids), param)
        if params.max_tokens is None:
            params = replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))
        elif params.max_tokens > room:
            raise InvalidRequestError(
                f"The prompt has {len(token_ids)} tokens and max_tokens is {params.max_tokens}; the context of this "
                f"model here is {limits.max_model_len} tokens: the largest max_tokens that fits is {room}.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        if params.n > limits.max_num_seqs:
            raise InvalidRequestError(
                f"n is {params.n}; this engine runs at most {limits.max_num_seqs} sequences at a time (max_num_seqs).",
                param="n",
            )
        for token in params.stop_token_ids:
            self._token("stop_token_ids", token)
        for token in params.logit_bias:
            self._token("logit_bias", token)
        if not isinstance(cache_salt, str) or len(cache_salt) > MAX_CACHE_SALT_LENGTH:
            raise InvalidRequestError(
                f"cache_salt takes a string of at most {MAX_CACHE_SALT_LENGTH} characters.", param="cache_salt"
            )
        if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**63) <= priority < 2**63:
            raise InvalidRequestError("priority takes an integer of 64 bits.", param="priority")
        return EngineRequest(request_id, tuple(token_ids), params, prompt, priority, cache_salt, time.time())


def _shown(token: object) -> str:
    # A very long integer is not shown: Python refuses to print it.
    return "of more than 64 bits" if isinstance(token, int) and abs(token) >= 2**64 else repr(token)[:64]
