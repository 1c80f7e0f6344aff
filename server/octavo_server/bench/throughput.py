"""Output tokens per second on a mixed workload, beside a peer or another backend on the same token ids in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.backend.discovery import discover
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.loading import EngineInfo
from octavo.models.resolve import resolve_model
from octavo.processor import EngineRequest
from octavo_server.bench.drive import engine_requests, load, run_steps, warm_up, workload_for
from octavo_server.bench.facts import engine_facts, record, threads_of
from octavo_server.bench.peer import PeerRun, TransformersPeer
from octavo_server.bench.show import stage
from octavo_server.bench.summary import Summary
from octavo_server.bench.workload import Lengths, Workload

TRANSFORMERS = "transformers"
"""The peer that is no backend of Octavo."""

BATCH_SIZES = (8, 32)
"""Static batches the peer is tried with; the better one counts."""


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over the workload. waste.

    Part of the allocated KV slots that held no token, mean over steps.
    """

    seconds: float
    outputs: tuple[tuple[int, ...], ...]
    steps: int
    preemptions: int
    waste: float


def measure(
    config: EngineConfig,
    num_requests: int,
    prompts: Lengths,
    outputs: Lengths,
    repeat: int,
    versus: str | None,
) -> dict[str, object]:
    """The record of `octavo bench throughput`; passes of engine and peer take turns.

    versus: "transformers", or the name of another backend. Raises BenchError, or BackendError for that backend.
    """
    if versus not in (None, TRANSFORMERS):
        discover().named(str(versus))  # before a model is loaded for minutes
    threads = threads_of(config)
    engine = Engine(load(config), config)
    workload = workload_for(engine, num_requests, prompts, outputs, config.seed)
    requests = engine_requests(engine, workload)
    warm_up(engine, requests)
    compared: dict[str, object] = {}
    if versus is None:
        runs = [run(engine, requests) for _ in range(repeat)]
    elif versus == TRANSFORMERS:
        runs, compared = _beside_transformers(engine, requests, workload, config.model, threads, repeat)
    else:
        # Named options are the first backend's own: a kernel, say, that the other one does not have.
        other = replace(config, backend=versus, kernel="auto", backend_options={})
        runs, compared = _beside_backend(engine, requests, workload, other, repeat)
    results = {"octavo": octavo_results(engine.info, workload, runs), **compared}
    return record("throughput", engine.info, threads, workload.describe(), results)


def _beside_backend(
    engine: Engine, requests: list[EngineRequest], workload: Workload, config: EngineConfig, repeat: int
) -> tuple[list[Run], dict[str, object]]:
    """Passes of the engine, and the results of one on another backend; both are loaded all the time."""
    other = Engine(load(config), config)
    try:
        warm_up(other, requests)
        runs: list[Run] = []
        others: list[Run] = []
        for number in range(1, repeat + 1):
            for each, taken in ((engine, runs), (other, others)):
                stage(f"pass {number} of {repeat}: {each.info.backend}")
                taken.append(run(each, requests))
        return runs, {
            "versus": {"engine": engine_facts(other.info), **octavo_results(other.info, workload, others)},
            "ratio": Summary.of(
                [theirs.seconds / own.seconds for own, theirs in zip(runs, others, strict=True)]
            ).as_data(),
            "identical_requests": _identical(runs[0].outputs, others[0].outputs),
        }
    finally:
        other.close()


def _identical(outputs: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]) -> int:
    return sum(own == other for own, other in zip(outputs, others, strict=True))


def _beside_transformers(
    engine: Engine, requests: list[EngineRequest], workload: Workload, model: str, threads: int, repeat: int
) -> tuple[list[Run], dict[str, object]]:
    """Passes of the engine, and the results of the comparison with the better of the peer's batch sizes."""
    runs: list[Run] = []
    passes: dict[int, list[PeerRun]] = {size: [] for size in BATCH_SIZES}
    with TransformersPeer(resolve_model(model), workload, threads) as peer:
        for number in range(1, repeat + 1):
            stage(f"pass {number} of {repeat}: octavo")
            runs.append(run(engine, requests))
            for size, taken in passes.items():
                stage(f"pass {number} of {repeat}: transformers, batch {size}")
                taken.append(peer.run(size))
        facts = peer.facts
    sizes = {size: _summary(workload, [done.seconds for done in taken]) for size, taken in passes.items()}
    best = max(sizes, key=lambda size: sizes[size]["output_tokens_per_second"]["median"])
    pairs = list(zip(runs, passes[best], strict=True))
    return runs, {
        "transformers": {**facts, "batch_sizes": {str(size): sizes[size] for size in sizes}, "best_batch_size": best},
        "ratio": Summary.of([peer.seconds / own.seconds for own, peer in pairs]).as_data(),
        "identical_requests": _identical(runs[0].outputs, passes[best][0].outputs),
    }


def run(engine: Engine, requests: list[EngineRequest]) -> Run:
    """One pass, nothing cached from the one before."""
    engine.reset_prefix_cache()
    before = engine.stats()
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    wastes = []
    started = time.perf_counter()
    for step in run_steps(engine, requests):
        for update in step.updates:
            outputs[update.request_id].extend(update.sequences[0].token_ids)
        stats = engine.stats()
        if stats.kv_allocated_slots:
            wastes.append(1 - stats.kv_used_slots / stats.kv_allocated_slots)
    seconds = time.perf_counter() - started
    after = engine.stats()
    return Run(
        seconds,
        tuple(tuple(ids) for ids in outputs.values()),
        after.steps - before.steps,
        after.num_preemptions - before.num_preemptions,
        sum(wastes) / max(1, len(wastes)),
    )


def octavo_results(info: EngineInfo, workload: Workload, runs: list[Run]) -> dict[str, object]:
    traffic = [bytes_read(info, workload, run.steps) / run.seconds for run in runs]
    return {
        **_summary(workload, [run.seconds for run in runs]),
        "steps": runs[0].steps,
        "mean_batch": workload.output_tokens / runs[0].steps,
        "bytes_read_per_second": Summary.of(traffic).as_data(),
        "kv_waste": runs[0].waste,
        "preemptions": runs[0].preemptions,
    }


def bytes_read(info: EngineInfo, workload: Workload, steps: int) -> int:
    """Bytes that a pass has to read at least: all weights once a step, and the context of each token once.

    As gpt-fast counts, extended by the KV cache. The context of a decoded token is all tokens up to its own;
    a prompt's keys and values are counted once, as if it were prefilled in one chunk. Activations are left
    out.
    """
    per_token = info.kv_cache_bytes / ((info.num_blocks + 1) * info.block_size)
    context = 0
    for request in workload.requests:
        prompt, decodes = len(request.prompt_token_ids), request.output_tokens - 1
        context += prompt + decodes * prompt + decodes * (decodes + 1) // 2
    return steps * info.weights_bytes + round(context * per_token)


def _summary(workload: Workload, seconds: list[float]) -> dict[str, dict[str, float]]:
    output, total = workload.output_tokens, workload.prompt_tokens + workload.output_tokens
    return {
        "seconds": Summary.of(seconds).as_data(),
        "output_tokens_per_second": Summary.of([output / taken for taken in seconds]).as_data(),
        "total_tokens_per_second": Summary.of([total / taken for taken in seconds]).as_data(),
    }
