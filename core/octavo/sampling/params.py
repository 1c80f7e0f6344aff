"""Sampling parameters of one request, with the names that users of vLLM and of the OpenAI API know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import InvalidRequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_COUNT = 2**31 - 1  # of tokens, and the largest token id: they are int32 on the device


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a completion ends.

    n: completions a request gives; they share the prompt's KV blocks.
    temperature: 0 is greedy; otherwise logits are divided by it.
    top_k: keep the k most likely tokens; -1 (or 0) keeps all.
    top_p: keep the smallest set of most likely tokens whose probability reaches top_p, in (0, 1].
    min_p: keep tokens at least min_p times as likely as the most likely one, in [0, 1].
    seed: an integer of 64 bits; the same seed gives the same draw whatever the batch, preemption or accelerator.
    max_tokens: None means as many as fit the context.
    min_tokens: no end-of-sequence or stop condition takes effect before this many tokens.
    stop: strings that end the completion and are not part of its text.
    stop_token_ids: token ids that end the completion.
    ignore_eos: go on after the model's end-of-sequence token.
    presence_penalty, frequency_penalty: OpenAI's, over output tokens, in [-2, 2].
    repetition_penalty: over prompt and output tokens (Keskar et al. 2019, CTRL), positive; 1 is off.
    logit_bias: token id -> value added to its logit, in [-100, 100].
    logprobs: number of most likely tokens to report beside each chosen one; None reports nothing.
    prompt_logprobs: the same for the prompt's tokens.

    Raises InvalidRequestError for a value out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        # A bare string is what most people write for one stop string; lists arrive from JSON.
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.logit_bias or {}, Mapping):
            raise InvalidRequestError("logit_bias takes a mapping of token ids to numbers.", param="logit_bias")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, None)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _integer("top_k", self.top_k, -1, MAX_COUNT)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, MAX_COUNT)
        _integer("min_tokens", self.min_tokens, 0, MAX_COUNT)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}.",
                param="min_tokens",
            )
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, None, low_open=True)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _integer(name, value, 0, MAX_LOGPROBS)
        self._check_stops()
        self._check_bias()

    def _check_stops(self) -> None:
        _length("stop", self.stop, MAX_STOP_STRINGS, "strings")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop takes non-empty strings, and got {text!r}.", param="stop")
            if len(text) > MAX_STOP_STRING_LENGTH:
                raise InvalidRequestError(
                    f"A stop string has {len(text)} characters; at most {MAX_STOP_STRING_LENGTH} fit.",
                    param="stop",
                )
        _length("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS, "token ids")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, MAX_COUNT)

    def _check_bias(self) -> None:
        _length("logit_bias", self.logit_bias, MAX_LOGIT_BIAS, "entries")
        for token, value in self.logit_bias.items():
            _integer("logit_bias", token, 0, MAX_COUNT)
            _number("logit_bias", value, -100.0, 100.0)


def _integer(name: str, value: object, low: int | None, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} takes an integer, and got {value!r}.", param=name)
    _range(name, value, low, high)


def _number(name: str, value: object, low: float | None, high: float | None, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} takes a number, and got {value!r}.", param=name)
    if isinstance(value, int) and abs(value) > MAX_COUNT:  # too large to even become a float, perhaps
        raise InvalidRequestError(f"{name} takes a number of reasonable size, and got one far beyond it.", param=name)
    if not math.isfinite(value):
        raise InvalidRequestError(f"{name} takes a finite number, and got {value!r}.", param=name)
    if low_open and low is not None and value <= low:
        bound = f"greater than {low:g}" + ("" if high is None else f" and at most {high:g}")
        raise InvalidRequestError(f"{name} must be {bound}, and is {value!r}.", param=name)
    _range(name, value, low, high)


def _range(name: str, value: float, low: float | None, high: float | None) -> None:
    # Very long integers are not shown: Python refuses to print them.
    shown = "larger than 64 bits" if isinstance(value, int) and abs(value) >= 2**64 else repr(value)
    if low is not None and value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, and is {shown}.", param=name)
    if high is not None and value > high:
        raise InvalidRequestError(f"{name} must be at most {high}, and is {shown}.", param=name)


def _items(name: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequestError(f"{name} takes a list, and got {value!r}.", param=name)
    return tuple(value)


def _length(name: str, value: object, most: int, unit: str) -> None:
    if len(value) > most:  # type: ignore[arg-type]  # callers pass sized containers
        raise InvalidRequestError(f"{name} has {len(value)} {unit}; at most {most} are possible.", param=name)  # type: ignore[arg-type]
