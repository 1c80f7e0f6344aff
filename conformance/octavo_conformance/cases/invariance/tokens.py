"""Tokens of whole requests: the same alone, in a batch, chunked, preempted, from the prefix cache, on every backend.

`token_runs` says what is the same where a device has 16 bits only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from octavo_conformance.case import Case
from octavo_conformance.cases.invariance.token_runs import (
    LENGTH,
    Request,
    check_same,
    one_by_one,
    open_llm,
    requests_of,
    run,
)
from octavo_conformance.workbench import Workbench

_MODELS = (("llama", "plain"), ("mistral", "window=7"), ("qwen3", "plain"))
_LIMIT = 120.0


def cases() -> Iterator[Case]:
    yield Case("invariance/tokens/batch", _batch, quick=True, limit=_LIMIT)
    yield Case("invariance/tokens/order", _order, limit=_LIMIT)
    yield Case("invariance/tokens/late_arrivals", _late_arrivals, quick=True, limit=_LIMIT)
    for family, variant in _MODELS[:2]:
        model_run = partial(_chunked, family, variant)
        yield Case(f"invariance/tokens/chunked_prefill/{family}", model_run, quick=family == "mistral", limit=_LIMIT)
    yield Case("invariance/tokens/preempted", _preempted, quick=True, limit=_LIMIT)
    yield Case("invariance/tokens/prefix_cache", _prefix_cache, quick=True, limit=_LIMIT)
    yield Case("invariance/tokens/siblings", _siblings, quick=True, limit=_LIMIT)
    yield Case("invariance/tokens/block_sizes", _block_sizes, limit=_LIMIT)
    for family, variant in _MODELS:
        model_run = partial(_reference, family, variant)
        yield Case(f"invariance/tokens/reference/{family}", model_run, quick=family == "llama", limit=_LIMIT)
    yield Case("invariance/repeat/same_engine", _same_engine, quick=True, limit=_LIMIT)
    yield Case("invariance/repeat/new_engine", _new_engine, limit=_LIMIT)


# --------------------------------------------------------------------------------------------- around the request


def _batch(bench: Workbench) -> None:
    requests = requests_of(bench, 16)
    with open_llm(bench) as llm:
        alone = one_by_one(llm, requests)
        check_same(bench, requests, "alone", alone, "in a batch of 16", run(llm, requests))


def _order(bench: Workbench) -> None:
    requests = requests_of(bench, 16)
    with open_llm(bench) as llm:
        batch = run(llm, requests)
        order = bench.rng.permutation(len(requests)).tolist()
        shuffled = run(llm, [requests[index] for index in order])
        again = [shuffled[order.index(index)] for index in range(len(requests))]
        check_same(bench, requests, "in a batch of 16", batch, "in the same batch in another order", again)


def _late_arrivals(bench: Workbench) -> None:
    """More requests than run at a time: each starts beside decodes that are at another place every time."""
    asked = requests_of(bench, 12)
    requests = [Request(one.prompt, replace(one.params, max_tokens=4 + 3 * i % 11)) for i, one in enumerate(asked)]
    with open_llm(bench, max_num_seqs=3) as llm:
        alone = one_by_one(llm, requests)
        check_same(bench, requests, "alone", alone, "queued behind others, three at a time", run(llm, requests))


def _chunked(family: str, variant: str, bench: Workbench) -> None:
    requests = requests_of(bench, 8, shortest=20)
    with open_llm(bench, family, variant) as llm:
        whole = one_by_one(llm, requests)
    with open_llm(bench, family, variant, max_num_batched_tokens=7, max_num_seqs=4) as llm:
        chunked = run(llm, requests)
        steps = llm.engine.stats().steps
    # 8 prompts of at least 20 tokens, 7 tokens a step.
    bench.require(steps > 24, f"The engine took {steps} steps for prompts that need more when they are chunked.")
    check_same(bench, requests, "prefilled whole", whole, "prefilled 7 tokens at a time", chunked)


def _preempted(bench: Workbench) -> None:
    """A pool too small for all: sequences lose their blocks, and compute their tokens so far again."""
    block_size = bench.small_block_size
    # Prompts end just before a block's border, so that each sequence needs one more block at once.
    length = max(1, -(-12 // block_size)) * block_size - min(2, block_size - 1)
    first, last = -(-(length + 1) // block_size), -(-(length + LENGTH) // block_size)
    requests = requests_of(bench, 6, shortest=length, longest=length)
    with open_llm(bench, enable_prefix_caching=False) as llm:
        alone = one_by_one(llm, requests)
    blocks = 6 * first + 3 * (last - first)
    small = partial(open_llm, block_size=block_size, room=blocks * block_size, max_model_len=length + LENGTH)
    with small(bench, enable_prefix_caching=False) as llm:
        crowded = run(llm, requests)
        preemptions = llm.engine.stats().num_preemptions
    bench.require(
        preemptions > 0 or first == last,  # where a block holds a whole sequence, none ever needs another
        f"Nothing was preempted: 6 sequences of {length} + {LENGTH} tokens, {blocks} blocks of {block_size}.",
    )
    check_same(bench, requests, "alone", alone, f"in a pool of {blocks} blocks with {preemptions} preemptions", crowded)


def _prefix_cache(bench: Workbench) -> None:
    block_size = bench.small_block_size
    prefix = bench.rng.integers(0, 256, 2 * block_size + block_size // 2).tolist()[:100]
    requests = [Request(prefix + one.prompt[:20], one.params) for one in requests_of(bench, 8)]
    with open_llm(bench, enable_prefix_caching=False) as llm:
        computed = one_by_one(llm, requests)
    with open_llm(bench, block_size=block_size) as llm:
        first = run(llm, requests)
        shared = run(llm, requests)
        hits = llm.engine.stats().prefix_cache_hits
    bench.require(
        hits > 0 or len(prefix) < block_size,  # only whole blocks are shared
        f"The prefix cache found nothing: 8 prompts that share {len(prefix)} tokens, twice; blocks of {block_size}.",
    )
    check_same(bench, requests, "computed whole", computed, "with the prefix cache on", first)
    check_same(bench, requests, "computed whole", computed, "from the prefix cache", shared)


def _siblings(bench: Workbench) -> None:
    """n > 1 shares the prompt's blocks and copies on write; a sibling is what it would be beside no other."""
    requests = [Request(one.prompt, replace(one.params, n=3)) for one in requests_of(bench, 6)]
    ones = [Request(one.prompt, replace(one.params, n=1)) for one in requests]
    with open_llm(bench) as llm:
        single = one_by_one(llm, ones)
        alone = one_by_one(llm, requests)
        check_same(bench, ones, "with n = 1", single, "as the first of n = 3", [each[:1] for each in alone])
        check_same(bench, requests, "alone", alone, "in a batch of 6 with n = 3", run(llm, requests))
    for request, sequences in zip(requests, alone, strict=True):
        different = len({tuple(each.tokens) for each in sequences})
        drawn = request.params.temperature > 0.0
        bench.require(
            different == 1 if not drawn else different > 1,
            f"n = 3 gave {different} different completions with temperature {request.params.temperature:g}: siblings "
            "have noise of their own, and greedy ones are all the same.",
        )


def _block_sizes(bench: Workbench) -> None:
    requests = requests_of(bench, 6, longest=60)
    sizes = [size for size in bench.capabilities.block_sizes if size <= 128]
    with open_llm(bench) as llm:
        expected = run(llm, requests)
    for size in sizes:
        with open_llm(bench, block_size=size, room=(6 * -(-80 // size) + 2) * size, max_model_len=80) as llm:
            came = run(llm, requests)
        check_same(bench, requests, f"in blocks of {bench.block_size}", expected, f"in blocks of {size}", came)


# ----------------------------------------------------------------------------------------- on another, and once more


def _reference(family: str, variant: str, bench: Workbench) -> None:
    requests = requests_of(bench, 12)
    with open_llm(bench, family, variant) as llm:
        here = run(llm, requests)
    with open_llm(bench, family, variant, backend="reference") as llm:
        right = run(llm, requests)
    check_same(bench, requests, "on the reference backend", right, f"on {bench.device.info.backend!r}", here)


def _same_engine(bench: Workbench) -> None:
    requests = requests_of(bench, 8)
    with open_llm(bench) as llm:
        first = run(llm, requests)
        check_same(bench, requests, "in a first run", first, "in a second run of the same engine", run(llm, requests))


def _new_engine(bench: Workbench) -> None:
    requests = requests_of(bench, 8)
    runs = []
    for _ in range(2):
        with open_llm(bench) as llm:
            runs.append(run(llm, requests))
    check_same(bench, requests, "in a first engine", runs[0], "in a second engine", runs[1])
