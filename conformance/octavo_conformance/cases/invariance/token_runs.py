"""Requests to tiny models, run in engines under different circumstances, and the rule by which their tokens agree.

On a device that claims float32 every token has to be the same. Where its most precise dtype has 16 bits, results of
batches of different shapes differ in their last bits, and two contenders for a token may be closer than that. There a
sequence may go another way from a position on at which the log-probabilities of both runs agree within `ROUNDING`, and
at least half of the sequences go the same way to their end. The noise of the draws is not excused: level invariance
compares it, and the sampler, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from octavo.backend import DType
from octavo.sampling.params import MAX_LOGPROBS, SamplingParams
from octavo_conformance.workbench import CaseFailure, Workbench

if TYPE_CHECKING:
    from octavo import LLM
    from octavo.outputs import Logprob

LENGTH = 12
"""Tokens of each completion."""

ROUNDING: Mapping[DType, float] = MappingProxyType({DType.FLOAT16: 0.02, DType.BFLOAT16: 0.15})
"""By how much log-probabilities of one token may differ between two runs of a tiny model, by compute dtype."""

_WAYS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=20),
    SamplingParams(temperature=0.0, repetition_penalty=1.2),
    SamplingParams(temperature=0.7, presence_penalty=0.5, min_p=0.01),
)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's token ids, and how it goes on."""

    prompt: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion. reported: the log-probabilities at each position, where they are asked for."""

    tokens: list[int]
    reported: Sequence[Mapping[int, Logprob]]


Results = list[list[Completion]]
"""Completions by request, then by sibling."""


def requests_of(bench: Workbench, count: int, shortest: int = 3, longest: int = 45) -> list[Request]:
    """Prompts of random bytes, and every way to sample."""
    requests = []
    for index in range(count):
        length = int(bench.rng.integers(shortest, max(shortest, longest) + 1))
        prompt = bench.rng.integers(0, 256, length).tolist()
        way = replace(_WAYS[index % len(_WAYS)], seed=100 + index, max_tokens=LENGTH, ignore_eos=True)
        # Where rounding may decide, what it decided on has to be seen.
        requests.append(Request(prompt, replace(way, logprobs=MAX_LOGPROBS) if bench.dtype in ROUNDING else way))
    return requests


def run(llm: LLM, requests: Sequence[Request]) -> Results:
    """All requests at once. Raises CaseFailure for one that ends with an error."""
    results = llm.generate([one.prompt for one in requests], [one.params for one in requests], use_tqdm=False)
    sequences: Results = []
    for number, result in enumerate(results):
        if result.error is not None:
            raise CaseFailure(f"engine: request {number} of {len(requests)} ended with an error: {result.error}")
        sequences.append([Completion(list(output.token_ids), output.logprobs or []) for output in result.outputs])
    return sequences


def one_by_one(llm: LLM, requests: Sequence[Request]) -> Results:
    """Each request in an engine that has nothing else to do."""
    return [run(llm, [request])[0] for request in requests]


def open_llm(
    bench: Workbench,
    family: str = "llama",
    variant: str = "plain",
    *,
    room: int = 0,
    block_size: int = 0,
    **options: Any,
) -> AbstractContextManager[LLM]:
    """A tiny model in an engine on hostile memory; see `hostile.engine.open_llm`.

    room: tokens that fit the KV cache; 0 gives as many as a batch of 16 needs. block_size: 0 is the device's
    preference.
    """
    from octavo_conformance.hostile import engine
    from octavo_conformance.oracles.models import LONGEST, ModelSpec, tiny_model

    model = tiny_model(ModelSpec(family, variant, bench.dtype, bench.head_size))
    return engine.open_llm(bench, model, room or 8 * LONGEST, block_size=block_size or bench.block_size, **options)


# ------------------------------------------------------------------------------------------------------- comparison


def check_same(
    bench: Workbench, requests: Sequence[Request], one: str, expected: Results, other: str, came: Results
) -> None:
    """The same tokens in both; the rule for 16 bits is this module's docstring."""
    parted, total = 0, 0
    for number, (request, lefts, rights) in enumerate(zip(requests, expected, came, strict=True)):
        for sibling, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            total += 1
            if left.tokens == right.tokens:
                continue
            parted += 1
            place = _first_difference(left.tokens, right.tokens)
            if _is_rounding(bench, left, right, place):
                continue
            which = f"request {number} (a prompt of {len(request.prompt)} tokens, {_way(request.params)})"
            raise CaseFailure(
                f"engine in {bench.dtype.value}: {which}{f', sibling {sibling}' if sibling else ''} has other tokens "
                f"{other} than {one}, from output position {place} on: {left.tokens[place:][:6]} {one}, "
                f"{right.tokens[place:][:6]} {other}."
            )
    bench.require(
        2 * parted <= total,
        f"engine in {bench.dtype.value}: {parted} of {total} sequences have other tokens {other} than {one}, which "
        "close contenders alone do not explain.",
    )


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _is_rounding(bench: Workbench, left: Completion, right: Completion, place: int) -> bool:
    """Whether both runs saw the same log-probabilities where they parted, as far as the dtype can tell."""
    bound = ROUNDING.get(bench.dtype)
    if bound is None or place >= min(len(left.tokens), len(right.tokens)):
        return False
    mine, others = left.reported[place], right.reported[place]
    shared = mine.keys() & others.keys()
    # Of the 20 most likely tokens a few at the end may be others.
    return len(shared) >= MAX_LOGPROBS // 2 and all(
        abs(mine[token].logprob - others[token].logprob) <= bound for token in shared
    )


def _way(params: SamplingParams) -> str:
    default = SamplingParams()
    shown = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "n", "seed")
    return ", ".join(
        f"{name}={getattr(params, name)}"
        for name in shown
        if name == "temperature" or getattr(params, name) != getattr(default, name)
    )
