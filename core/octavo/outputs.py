"""What a request gives back: increments while it runs (`RequestUpdate`), the whole at the end (`RequestOutput`).

The engine emits `RequestUpdate`s; servers stream them, `LLM` folds them into `RequestOutput`s. The names of the final
results are those that users of vLLM know. Updates are made for every token: as named tuples they cost a quarter of what
frozen dataclasses do, and a fifth to send.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token under the model's own distribution.

    Taken before temperature, penalties and truncation, as the OpenAI API and vLLM report it.
    `rank` counts from 1 (the most likely token). `decoded_token` is the token's text on its own.
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Logprobs at one position: the chosen (or given) token, and the `top` most likely ones in order."""

    token_id: int
    logprob: Logprob
    top: tuple[tuple[int, Logprob], ...] = ()


class SequenceUpdate(NamedTuple):
    """What one sequence gained since its last update; `text` is only ever appended to.

    Text that may still turn out to be part of a stop string is held back, so `text` can be empty while `token_ids` is
    not.
    """

    index: int  # type: ignore[assignment]  # and not the method of tuples
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None  # "stop" | "length" | "abort" | "error"
    stop_reason: int | str | None = None  # the stop token id or stop string that ended it


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times are `time.time()` seconds; None until the event has happened."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0  # prompt tokens served from the prefix cache
    num_preemptions: int = 0


class RequestUpdate(NamedTuple):
    """What one engine step did for one request."""

    request_id: str
    sequences: tuple[SequenceUpdate, ...]
    finished: bool = False
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # [prompt tokens]; once, when all are known
    metrics: RequestMetrics | None = None  # with the last update
    error: str | None = None  # why the request ended with finish_reason "error"


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` completions of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None  # per token: token id -> Logprob
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A finished request. error: why its completions have the finish reason "error"; other requests go on."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False
    metrics: RequestMetrics | None = None
    error: str | None = None
