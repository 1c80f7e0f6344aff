"""How many programs torch-xla compiles for a generation.

    python -m octavo_torch_xla.compilations

A tiny random Llama answers two rounds of prompts, greedily; those of the second are each one token longer. What the
second round compiles is what serving would go on compiling.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from octavo import LLM, SamplingParams
from octavo_conformance.oracles.models import ModelSpec, tiny_model

PROMPT_LENGTHS = (3, 17, 40, 9, 70, 25)
OUTPUT = 24
"""Tokens of each answer."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of prompts took. fetched: downloads. compiling: seconds in the compiler, of all `seconds`."""

    compiled: int
    executed: int
    fetched: int
    seconds: float
    compiling: float
    tokens: list[list[int]]


def main() -> None:
    print(f"{len(PROMPT_LENGTHS)} prompts, {OUTPUT} tokens each")
    expected = generate_twice("reference")
    for number, (done, right) in enumerate(zip(generate_twice("xla:torch"), expected, strict=True), 1):
        print(
            f"round {number}: {done.compiled} programs compiled in {done.compiling:.1f} of {done.seconds:.1f} s, "
            f"{done.executed} executed, {done.fetched} downloads; "
            f"{'the' if done.tokens == right.tokens else 'NOT the'} tokens of the reference"
        )


def generate_twice(backend: str) -> list[Round]:
    with LLM(
        tiny_model(ModelSpec("llama")).directory,
        backend=backend,
        kv_cache_memory=1 << 22,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,  # the second round is to compute as much as the first
        warm_up_seconds=0.0,
    ) as llm:
        return [_round(llm, [_prompt(length + longer) for length in PROMPT_LENGTHS]) for longer in range(2)]


def _prompt(length: int) -> list[int]:
    return [(7 * length + index) % 256 for index in range(length)]


def _round(llm: LLM, prompts: Sequence[Sequence[int]]) -> Round:
    from torch_xla.debug import metrics

    metrics.clear_all()
    start = time.perf_counter()
    results = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True))
    seconds = time.perf_counter() - start
    compiled, compiling = _total("CompileTime")
    return Round(
        compiled=compiled,
        executed=_total("ExecuteTime")[0],
        fetched=_total("TransferFromDeviceTime")[0],
        seconds=seconds,
        compiling=compiling,
        tokens=[list(result.outputs[0].token_ids) for result in results],
    )


def _total(name: str) -> tuple[int, float]:
    """How often a thing that torch-xla times was done, and its seconds."""
    from torch_xla.debug import metrics

    data = metrics.metric_data(name)
    return (0, 0.0) if data is None else (data[0], data[1] / 1e9)


if __name__ == "__main__":
    main()
