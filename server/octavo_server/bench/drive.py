"""Run requests through the real engine, one step at a time, with a look in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.loading import LoadedModel, load_model
from octavo.outputs import RequestUpdate
from octavo.planning import plan_cache
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams
from octavo_server.bench.errors import BenchError
from octavo_server.bench.facts import threads_of
from octavo_server.bench.text import TEXT
from octavo_server.bench.workload import Lengths, Workload, make_workload
from octavo_server.progress import LoadingProgress


@dataclass(frozen=True, slots=True)
class StepResult:
    """One engine step. tokens: output tokens it gave, over all sequences."""

    seconds: float
    updates: tuple[RequestUpdate, ...]

    @property
    def tokens(self) -> int:
        return sum(len(sequence.token_ids) for update in self.updates for sequence in update.sequences)


def load(config: EngineConfig) -> LoadedModel:
    """The model for a measurement: the number of threads is stated, so that a peer can be given the same."""
    with LoadingProgress() as progress:
        return load_model(replace(config, threads=threads_of(config)), progress)


def with_block_size(loaded: LoadedModel, config: EngineConfig, block_size: int) -> LoadedModel:
    """The same weights with a KV cache of other blocks. Raises UnsupportedError where the backend has none such."""
    asked = replace(config, block_size=block_size, max_model_len=loaded.info.max_model_len)
    cache = plan_cache(asked, loaded.device, loaded.model, loaded.cache.layout.dtype)
    info = replace(loaded.info, block_size=block_size, num_blocks=cache.num_blocks - 1, kv_cache_bytes=cache.bytes)
    return replace(loaded, cache=cache, info=info)


def workload_for(engine: Engine, num_requests: int, prompts: Lengths, outputs: Lengths, seed: int) -> Workload:
    """The workload, in the tokens of the engine's model.

    Raises BenchError where its longest request does not fit.
    """
    most, allowed = prompts.longest + outputs.longest, engine.info.max_model_len
    if most > allowed:
        raise BenchError(
            f"The longest prompt and the longest output take {most} tokens together; the context of this "
            f"model here is {allowed}."
        )
    return make_workload(engine.tokenizer.encode(TEXT, add_special_tokens=False), num_requests, seed, prompts, outputs)


def engine_requests(engine: Engine, workload: Workload, n: int = 1, prefix: Sequence[int] = ()) -> list[EngineRequest]:
    """Requests that ignore the end-of-sequence token.

    Greedy for n = 1; sampled for more, as the sequences of a request would not part otherwise. prefix: token
    ids before every prompt.
    """
    return [
        engine.processor.process(
            f"bench-{index}",
            [*prefix, *request.prompt_token_ids],
            SamplingParams(
                n=n,
                temperature=0.0 if n == 1 else 1.0,
                seed=workload.seed + index,
                max_tokens=request.output_tokens,
                ignore_eos=True,
            ),
        )
        for index, request in enumerate(workload.requests)
    ]


def run_steps(engine: Engine, requests: Sequence[EngineRequest]) -> Iterator[StepResult]:
    """Queue all requests and step until all are done. Raises BenchError when one fails."""
    for request in requests:
        engine.add(request)
    while engine.has_work:
        started = time.perf_counter()
        updates = engine.step()
        seconds = time.perf_counter() - started
        for update in updates:
            if update.error is not None:
                raise BenchError(f"A request of the benchmark failed: {update.error}")
        yield StepResult(seconds, tuple(updates))


def warm_up(engine: Engine, requests: Sequence[EngineRequest]) -> None:
    """Touch the weights, start the threads, compile what is compiled; leaves no cached prefix behind.

    Where steps are compiled that is a whole pass: it meets every size that the measured ones will.
    """
    if not engine.wants_warm_up:
        requests = [replace(request, params=replace(request.params, max_tokens=2)) for request in requests[:2]]
    for _ in run_steps(engine, requests):
        pass
    engine.reset_prefix_cache()
