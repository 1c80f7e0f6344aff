"""How much KV memory the real engine leaves unused, step by step, and how much sharing saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from octavo.backend.errors import UnsupportedError
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest
from octavo_server.bench.drive import engine_requests, load, run_steps, with_block_size, workload_for
from octavo_server.bench.errors import BenchError
from octavo_server.bench.facts import record, threads_of
from octavo_server.bench.occupancy import (
    PAGED_ATTENTION_WASTE,
    Occupancy,
    Reservation,
    Sample,
    by_running,
    paged_slots,
    reserved,
    sharing_saves,
)
from octavo_server.bench.show import stage
from octavo_server.bench.text import TEXT
from octavo_server.bench.workload import Lengths, Workload, WorkloadRequest

SYSTEM_PROMPT_TOKENS = 100
"""What all requests of the prefix-caching run start with: no whole number of blocks."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One pass of the engine, sampled after every step.

    unfinished: step by step, the requests that had not ended, in the order they came.
    """

    samples: tuple[Sample, ...]
    unfinished: tuple[tuple[WorkloadRequest, ...], ...]

    @property
    def running(self) -> list[tuple[WorkloadRequest, ...]]:
        """Step by step, the requests that ran (with n = 1): they are admitted in the order they came."""
        return [left[: sample.running] for sample, left in zip(self.samples, self.unfinished, strict=True)]


def measure(
    config: EngineConfig,
    num_requests: int,
    prompts: Lengths,
    outputs: Lengths,
    block_sizes: Sequence[int],
    n: int,
) -> dict[str, object]:
    """The record of `octavo bench waste`.

    block_sizes: what the mixed workload is repeated with; those that the backend does not do are named as
    skipped. n: completions a request in the sharing run. Raises BenchError.
    """
    plain = replace(config, enable_prefix_caching=False)
    loaded = load(plain)
    engine = Engine(loaded, plain)
    workload = workload_for(engine, num_requests, prompts, outputs, config.seed)
    info = engine.info
    stage(f"mixed requests, blocks of {info.block_size}")
    mixed = observe(engine, engine_requests(engine, workload), workload)
    stage(f"n = {n}")
    forked = observe(engine, engine_requests(engine, workload, n=n), workload, n=n)
    stage("shared prefix")
    prefixed = observe_prefix(Engine(loaded, replace(config, enable_prefix_caching=True)), workload)
    sizes, skipped = {info.block_size: Occupancy.of(mixed.samples)}, {}
    for size in sorted(set(block_sizes) - {info.block_size}):
        try:
            stage(f"mixed requests, blocks of {size}")
            other = Engine(with_block_size(loaded, plain, size), plain)
        except UnsupportedError as error:
            skipped[str(size)] = str(error)
            continue
        sizes[size] = Occupancy.of(observe(other, engine_requests(other, workload), workload).samples)
    pairs = list(zip(mixed.samples, mixed.running, strict=True))
    contiguous = {
        policy.value: asdict(Occupancy.of(reserved(pairs, policy, info.max_model_len))) for policy in Reservation
    }
    results: dict[str, object] = {
        "bound": PAGED_ATTENTION_WASTE,
        "paged": asdict(Occupancy.of(mixed.samples)),
        "by_running": {str(running): part for running, part in by_running(mixed.samples).items()},
        "contiguous": contiguous,
        "block_sizes": {str(size): asdict(sizes[size]) for size in sorted(sizes)},
        "block_sizes_skipped": skipped,
        "completions": {
            "n": n,
            **asdict(Occupancy.of(forked.samples)),
            "saved": sharing_saves(forked.samples),
        },
        "shared_prefix": {
            "prefix_tokens": SYSTEM_PROMPT_TOKENS,
            **asdict(Occupancy.of(prefixed.samples)),
            "saved": sharing_saves(prefixed.samples),
        },
        "samples": {"mixed": _rows(mixed.samples), "completions": _rows(forked.samples)},
    }
    return record("waste", info, threads_of(config), workload.describe(), results)


def observe(engine: Engine, requests: Sequence[EngineRequest], workload: Workload, n: int = 1) -> Observed:
    """Run the requests and sample the cache after every step.

    Raises BenchError when the pool is so small that the engine preempts.
    """
    ledger = _Ledger(requests)
    samples, unfinished = [], []
    for step in run_steps(engine, requests):
        ledger.take(step.updates)
        stats = engine.stats()
        unshared = None
        if stats.num_running == len(ledger.stored):  # otherwise a prompt is half computed
            unshared = sum(paged_slots(tokens, engine.info.block_size) for tokens in ledger.stored.values())
        samples.append(Sample(stats.num_running, stats.kv_allocated_slots, stats.kv_used_slots, unshared))
        left = (ledger.unfinished[request.request_id] for request in requests)
        unfinished.append(tuple(own for own, count in zip(workload.requests, left, strict=True) if count))
    if engine.stats().num_preemptions:
        raise BenchError(
            f"The KV cache of {engine.info.num_blocks} blocks is too small for this workload: requests were "
            "preempted, and what runs depends on that; give it more kv_cache_memory."
        )
    return Observed(tuple(samples), tuple(unfinished))


def observe_prefix(engine: Engine, workload: Workload) -> Observed:
    """The workload with a system prompt before every request.

    One request has left it in the prefix cache before.
    """
    text = engine.tokenizer.encode(TEXT, add_special_tokens=False)
    # Read backwards, so that no prompt of the workload starts like it.
    prefix = [text[-1 - index % len(text)] for index in range(SYSTEM_PROMPT_TOKENS)]
    requests = engine_requests(engine, workload, prefix=prefix)
    observe(engine, requests[:1], Workload(workload.requests[:1], workload.seed))
    return observe(engine, requests, workload)


class _Ledger:
    """What is known of the requests from their updates.

    stored: tokens in the cache for each sequence that has begun and not ended. unfinished: for each request,
    how many of its sequences have not ended.
    """

    def __init__(self, requests: Sequence[EngineRequest]) -> None:
        self._prompts = {request.request_id: len(request.prompt_token_ids) for request in requests}
        self.stored: dict[tuple[str, int], int] = {}
        self.unfinished = {request.request_id: request.params.n for request in requests}

    def take(self, updates: Sequence[RequestUpdate]) -> None:
        for update in updates:
            request_id = update.request_id
            for sequence in update.sequences:
                key = request_id, sequence.index
                # The newest token is sampled and not stored yet.
                before = self.stored.get(key, self._prompts[request_id] - 1)
                self.stored[key] = before + len(sequence.token_ids)
                if sequence.finish_reason is not None:
                    del self.stored[key]
                    self.unfinished[request_id] -= 1


def _rows(samples: Sequence[Sample]) -> list[list[int | None]]:
    """[running, allocated slots, used slots, unshared slots] of each step."""
    return [[sample.running, sample.allocated_slots, sample.used_slots, sample.unshared_slots] for sample in samples]
