"""The requests a benchmark runs.

Lengths spread over a range, token ids cut from real text, the same for every engine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from octavo_server.bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Lengths:
    """A spread of lengths in tokens from `shortest` to `longest`, both of them present.

    Lengths are `shortest + (longest - shortest) * q ** skew` at evenly spaced q from 0 to 1: many short ones
    and few long ones, as chat traffic has them. The spread is the same for every seed, which only deals it
    out.
    """

    shortest: int
    longest: int
    skew: float

    @classmethod
    def parse(cls, name: str, text: str, skew: float) -> Lengths:
        """From "16:460", or "128" for one length. Raises BenchError naming the option."""
        low, _, high = text.partition(":")
        try:
            lengths = cls(int(low), int(high or low), skew)
        except ValueError:
            raise BenchError(f"{name} takes a range of tokens such as 16:460, and got {text!r}.") from None
        if not 1 <= lengths.shortest <= lengths.longest:
            raise BenchError(f"{name} takes a range of at least 1 token, the smaller number first, and got {text!r}.")
        return lengths

    def spread(self, count: int) -> list[int]:
        """`count` lengths, ascending."""
        steps = max(1, count - 1)
        span = self.longest - self.shortest
        return [self.shortest + round(span * (index / steps) ** self.skew) for index in range(count)]


# The skews give the 32 requests of the default workload 5,169 prompt and 2,061 output tokens in all.
PROMPT_LENGTHS = Lengths(16, 460, skew=2.1033)
OUTPUT_LENGTHS = Lengths(8, 172, skew=1.96)
DEFAULT_REQUESTS = 32


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request: its prompt, and how many tokens are generated whatever they are."""

    prompt_token_ids: tuple[int, ...]
    output_tokens: int

    @property
    def stored_tokens(self) -> int:
        """Tokens in the KV cache when the request ends: all but the last one, which nothing attends to."""
        return len(self.prompt_token_ids) + self.output_tokens - 1


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in their order of arrival; all of them have arrived when the run begins."""

    requests: tuple[WorkloadRequest, ...]
    seed: int

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.requests)

    def describe(self) -> dict[str, object]:
        """The facts of a workload, for the record of a run."""
        prompts = [len(request.prompt_token_ids) for request in self.requests]
        outputs = [request.output_tokens for request in self.requests]
        return {
            "num_requests": len(self.requests),
            "seed": self.seed,
            "prompt_tokens": sum(prompts),
            "shortest_prompt": min(prompts),
            "longest_prompt": max(prompts),
            "output_tokens": sum(outputs),
            "shortest_output": min(outputs),
            "longest_output": max(outputs),
        }


def make_workload(
    text_ids: Sequence[int],
    num_requests: int,
    seed: int,
    prompts: Lengths = PROMPT_LENGTHS,
    outputs: Lengths = OUTPUT_LENGTHS,
) -> Workload:
    """Deal prompt and output lengths at random, and cut each prompt from the text at a place of its own.

    text_ids: the tokens of a text, read in a circle. No two prompts start at the same place while the text
    has places left, so that none is found in another's prefix cache. Raises BenchError for no requests or no
    text.
    """
    if num_requests < 1:
        raise BenchError(f"A workload needs at least 1 request, and {num_requests} were asked for.")
    if not text_ids:
        raise BenchError("The tokenizer makes no tokens of the benchmark's text.")
    dealer = random.Random(seed)
    prompt_lengths, output_lengths = prompts.spread(num_requests), outputs.spread(num_requests)
    dealer.shuffle(prompt_lengths)
    dealer.shuffle(output_lengths)
    rounds = -(-num_requests // len(text_ids))
    starts = dealer.sample(list(range(len(text_ids))) * rounds, num_requests)
    return Workload(
        tuple(
            WorkloadRequest(_slice(text_ids, start, prompt), output)
            for start, prompt, output in zip(starts, prompt_lengths, output_lengths, strict=True)
        ),
        seed,
    )


def _slice(ids: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    return tuple(ids[(start + index) % len(ids)] for index in range(count))
