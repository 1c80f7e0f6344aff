"""A request and the sequences it runs as. The scheduler owns both and is the only one to change them."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field
from enum import Enum
from typing import overload

from octavo.cache import BlockTable
from octavo.errors import InvalidRequestError


class FinishReason(str, Enum):
    """Why a sequence ended, as the OpenAI API spells it where it has the word."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Status(Enum):
    """Where a sequence is.

    PENDING: waits for sequence 0 of its request to compute the prompt they share. WAITING: in the queue,
    never run or preempted.
    """

    PENDING = "pending"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """A prompt and what to make of it: `n` sequences of at most `max_tokens` tokens each.

    priority: lower runs first. arrival_time: seconds, orders requests of one priority. cache_salt, adapter:
    requests share computed prefixes only where both are equal. read_prefix_cache: False to compute every
    prompt token (its logprobs are wanted). params: opaque here. seeds: one for each sequence, or none.

    Raises InvalidRequestError for an empty prompt, and for n or max_tokens below 1.
    """

    request_id: str
    prompt_token_ids: abc.Sequence[int]
    max_tokens: int
    n: int = 1
    priority: int = 0
    arrival_time: float = 0.0
    cache_salt: str = ""
    adapter: int = -1
    read_prefix_cache: bool = True
    params: object = None
    seeds: tuple[int, ...] = ()
    forked: bool = field(default=False, init=False)
    """Whether the sequences have diverged; before that, sequence 0 computes the prompt for all."""
    sequences: tuple[Sequence, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("n", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} must be at least 1, and is {getattr(self, name)}.", param=name)
        if not self.prompt_token_ids:
            raise InvalidRequestError("The prompt is empty; at least one token is needed.", param="prompt")
        if self.seeds and len(self.seeds) != self.n:
            raise InvalidRequestError(
                f"{self.n} sequences need {self.n} seeds, and got {len(self.seeds)}.", param="seed"
            )
        self.forked = self.n == 1
        self.sequences = tuple(Sequence(self, index) for index in range(self.n))

    @property
    def is_finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)


class Sequence:
    """One continuation of a request's prompt."""

    __slots__ = (
        "admission",
        "block_table",
        "finish_reason",
        "first_scheduled_time",
        "index",
        "lane",
        "max_length",
        "num_cached_tokens",
        "num_pending",
        "num_preemptions",
        "rank",
        "request",
        "status",
        "token_ids",
    )

    block_table: BlockTable
    """Given by `Scheduler.add`; holds no blocks unless the sequence is running."""

    def __init__(self, request: Request, index: int) -> None:
        self.request = request
        self.index = index
        self.token_ids = list(request.prompt_token_ids)
        """Prompt and output as far as they are known; only ever appended to."""
        self.max_length = len(self.token_ids) + request.max_tokens
        """The most tokens it can have, prompt and output."""
        self.num_pending = 0
        """Tokens after `token_ids` that a step in flight samples: they count, and nobody knows them yet. 0 or 1."""
        self.lane = -1
        """Its seat among the running ones, 0 to max_num_seqs - 1; -1 while it has none."""
        self.admission = 0
        """Number of the admission that gave it the blocks it holds; no two admissions have the same."""
        self.rank: tuple[int, float, int, int] = (request.priority, request.arrival_time, 0, index)
        """The smaller, the sooner it runs and the later it is preempted."""
        self.status = Status.WAITING if index == 0 else Status.PENDING
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        """Prompt tokens found in the prefix cache when it was first admitted."""
        self.num_preemptions = 0
        self.first_scheduled_time: float | None = None

    @property
    def num_computed_tokens(self) -> int:
        return self.block_table.num_computed

    @property
    def num_tokens(self) -> int:
        """Tokens known and pending."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> TokenView:
        """The sampled tokens so far, as a view: it grows with the sequence and copies nothing."""
        return TokenView(self.token_ids, self.num_prompt_tokens)

    @property
    def seed(self) -> int | None:
        return self.request.seeds[self.index] if self.request.seeds else None

    @property
    def num_samples(self) -> int:
        """Tokens sampled once all of its tokens are computed: every sibling's first while they share the
        prompt.
        """
        return 1 if self.request.forked else self.request.n

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    def __repr__(self) -> str:
        name = f"{self.request.request_id}/{self.index}"
        return f"<Sequence {name} {self.status.value} {len(self.token_ids)} tokens>"


class TokenView(abc.Sequence[int]):
    """The tokens of a growing list from `start` on."""

    __slots__ = ("_start", "_token_ids")

    def __init__(self, token_ids: list[int], start: int) -> None:
        self._token_ids = token_ids
        self._start = start

    def __len__(self) -> int:
        return len(self._token_ids) - self._start

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return [self._token_ids[self._start + position] for position in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} output tokens; number {index} was asked for.")
        return self._token_ids[self._start + index % len(self)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, abc.Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows
