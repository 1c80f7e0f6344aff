"""Level `step`: the logits of whole tiny models of every family, over a paged cache, against transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from octavo.backend import DType
from octavo_conformance.case import Case, Needs
from octavo_conformance.oracles.models import VARIANTS, VOCABULARY, ModelSpec, TinyModel, tiny_model
from octavo_conformance.workbench import PRECISE, Workbench

Feeds = Sequence[dict[str, int]]
"""Steps: how many of its tokens each sequence computes."""


@dataclass(frozen=True, slots=True)
class _Spec:
    """family, variant: a row of `oracles.models.VARIANTS`. schedule: a key of `_SCHEDULES`, perhaps in `_PADDED`."""

    family: str
    variant: str
    dtype: DType
    schedule: str


_PADDED = "padded"


def cases() -> Iterator[Case]:
    """Every schedule for the plain model of each family, the one that has it all for its variants."""
    for family, variants in VARIANTS.items():
        for variant in variants:
            for dtype in PRECISE:
                for schedule in (*_SCHEDULES, _PADDED) if variant == "plain" else ("mixed",):
                    yield _case(_Spec(family, variant, dtype, schedule))


def _case(spec: _Spec) -> Case:
    window = "window" in spec.variant
    return Case(
        id=f"step/{spec.family}/{spec.dtype.value}/{spec.variant},{spec.schedule}",
        run=partial(_run, spec),
        needs=Needs(dtypes=(spec.dtype,)),
        dtype=spec.dtype,
        quick=spec.schedule == "mixed" or spec.family == "llama" or window,
        limit=120.0,
    )


def _run(spec: _Spec, bench: Workbench) -> None:
    from octavo_conformance.hostile.paged_model import PagedModel, cache_tolerance

    model = tiny_model(ModelSpec(spec.family, spec.variant, spec.dtype, bench.head_size))
    feeds = _SCHEDULES["mixed" if spec.schedule == _PADDED else spec.schedule](bench.block_size)
    prompts = {name: bench.rng.integers(0, VOCABULARY, total).tolist() for name, total in _totals(feeds).items()}
    blocks = 1 + sum(-(-len(tokens) // bench.block_size) for tokens in prompts.values())
    paged = PagedModel(bench, model, blocks, padded=spec.schedule == _PADDED)
    done = dict.fromkeys(prompts, 0)
    submitted = []
    for feed in feeds:
        tokens = {name: prompts[name][done[name] : done[name] + count] for name, count in feed.items()}
        submitted.append(paged.submit(tokens))
        for name, count in feed.items():
            done[name] += count
            if done[name] == len(prompts[name]):
                paged.free(name)
    # Only now: what a step returned stays as it is, however many run before it is downloaded.
    results = [paged.logits(step) for step in submitted]
    _check(bench, spec, model, prompts, results, cache_tolerance(bench, model))


def _check(
    bench: Workbench,
    spec: _Spec,
    model: TinyModel,
    prompts: dict[str, list[int]],
    results: Sequence[dict[str, np.ndarray]],
    extra: float,
) -> None:
    done = dict.fromkeys(prompts, 0)
    for number, result in enumerate(results):
        for name, got in result.items():
            start, stop = done[name], done[name] + len(got)
            expected = model.logits(prompts[name])[start:stop]
            where = (
                f"{spec.family}, {spec.variant}, blocks of {bench.block_size}, step {number} of {len(results)}, "
                f"sequence {name} at positions {start} to {stop - 1} beside {len(result) - 1} others"
            )
            bench.require(
                got.shape == expected.shape, f"model: logits of shape {got.shape}, expected {expected.shape} ({where})."
            )
            bench.measure("model", spec.dtype, got, expected, where, extra)
            done[name] = stop


# ---------------------------------------------------------------------------------------------------- the schedules


_LONGEST_CHUNK = 64
"""Tokens of a chunk whose length follows the block size: the worst row of many more rows would be another measure."""


def _prefill(block_size: int) -> Feeds:
    """Whole prompts at once, of lengths around the border of a block."""
    block = min(block_size, _LONGEST_CHUNK)
    lengths = (1, block - 1, block, block + 1, 2 * block + 3 if block == block_size else block_size + 1)
    return [{f"s{index}": length for index, length in enumerate(lengths) if length > 0}]


def _decode(block_size: int) -> Feeds:
    """Token by token: one sequence across the border of a block, two from nothing, the last one later."""
    start = max(block_size, 4) - 2
    steps = [{"a": 1, "b": 1} | ({"c": 1} if step > 1 else {}) for step in range(min(block_size, 16) + 3)]
    return [{"a": start}, *steps]


def _mixed(block_size: int) -> Feeds:
    """Chunked prefills beside decodes. The sequences change places, and blocks change hands between steps."""
    block = min(max(block_size, 4), _LONGEST_CHUNK)
    return [
        {"a": block - 1},
        {"a": 1, "b": 5},
        {"b": block, "a": 1, "c": 2},
        {"c": 1, "a": 1, "b": 2},  # a ends here,
        {"d": 3, "c": 1, "b": 1},  # and d gets its blocks
        {"d": block + 1, "b": 1, "c": 1},
        {"c": 1, "d": 1, "e": 1},
        {"e": 2 * block + 1, "d": 1},
        {"d": 1, "e": 1},
    ]


_SCHEDULES = {"prefill": _prefill, "decode": _decode, "mixed": _mixed}


def _totals(feeds: Feeds) -> dict[str, int]:
    totals: dict[str, int] = {}
    for feed in feeds:
        for name, count in feed.items():
            totals[name] = totals.get(name, 0) + count
    return totals
