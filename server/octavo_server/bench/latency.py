"""What one user feels: time to first token, time per output token; and how decoding scales with the batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.processor import EngineRequest
from octavo_server.bench.drive import engine_requests, load, run_steps, warm_up, workload_for
from octavo_server.bench.errors import BenchError
from octavo_server.bench.facts import record, threads_of
from octavo_server.bench.summary import Summary
from octavo_server.bench.workload import Lengths


@dataclass(frozen=True, slots=True)
class Stream:
    """One request alone on the engine, in seconds.

    Until its first token, and between each two tokens after it.
    """

    to_first_token: float
    between_tokens: tuple[float, ...]


def measure(
    config: EngineConfig,
    prompt_lengths: Sequence[int],
    output_tokens: int,
    batch_sizes: Sequence[int],
    batch_prompt: int,
    repeat: int,
) -> dict[str, object]:
    """The record of `octavo bench latency`.

    prompt_lengths, output_tokens: of the single streams, `repeat` of each. batch_sizes, batch_prompt: batches
    that decode together, every request with a prompt of `batch_prompt` tokens. Raises BenchError.
    """
    if output_tokens < 2:
        raise BenchError(f"The time between tokens needs at least 2 output tokens, and {output_tokens} was asked for.")
    if max(batch_sizes) > config.max_num_seqs:
        raise BenchError(f"A batch of {max(batch_sizes)} was asked for; max_num_seqs allows {config.max_num_seqs}.")
    engine = Engine(load(config), config)
    warm_up(engine, _requests(engine, 2, batch_prompt, 2, config.seed))
    single = []
    for length in prompt_lengths:
        requests = _requests(engine, repeat, length, output_tokens, config.seed)
        streams = [stream(engine, request) for request in requests]
        first = Summary.of([taken.to_first_token for taken in streams])
        gaps = Summary.of([gap for taken in streams for gap in taken.between_tokens])
        single.append(
            {
                "prompt_tokens": length,
                "time_to_first_token_seconds": first.as_data(),
                "time_per_output_token_seconds": gaps.as_data(),
                "output_tokens_per_second": 1 / gaps.median,
            }
        )
    batches = []
    for size in batch_sizes:
        requests = _requests(engine, size, batch_prompt, output_tokens, config.seed)
        steps = Summary.of(decode_steps(engine, requests))
        batches.append(
            {
                "batch_size": size,
                "step_seconds": steps.as_data(),
                "output_tokens_per_second": size / steps.median,
            }
        )
    shape: dict[str, object] = {
        "seed": config.seed,
        "repeat": repeat,
        "output_tokens": output_tokens,
        "batch_prompt_tokens": batch_prompt,
    }
    return record("latency", engine.info, threads_of(config), shape, {"single_stream": single, "decode": batches})


def stream(engine: Engine, request: EngineRequest) -> Stream:
    """Run one request alone, with nothing cached."""
    engine.reset_prefix_cache()
    arrivals = [time.perf_counter()]
    for step in run_steps(engine, [request]):
        if step.tokens:
            arrivals.append(time.perf_counter())
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    return Stream(gaps[0], tuple(gaps[1:]))


def decode_steps(engine: Engine, requests: Sequence[EngineRequest]) -> list[float]:
    """Seconds of the steps in which every request decoded one token and nothing was prefilled.

    Raises BenchError for none.
    """
    engine.reset_prefix_cache()
    seconds: list[float] = []
    begun: set[str] = set()
    for step in run_steps(engine, requests):
        if len(begun) == len(requests) == step.tokens:
            seconds.append(step.seconds)
        begun.update(update.request_id for update in step.updates)
    if not seconds:
        raise BenchError(
            f"{len(requests)} requests never decoded all at once: the first ended before the last one's prompt "
            "was computed; ask for more output tokens."
        )
    return seconds


def _requests(engine: Engine, count: int, prompt: int, output: int, seed: int) -> list[EngineRequest]:
    lengths = Lengths(prompt, prompt, 1.0), Lengths(output, output, 1.0)
    return engine_requests(engine, workload_for(engine, count, *lengths, seed))
