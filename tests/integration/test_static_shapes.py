"""Devices that compile or capture steps see padded buckets, few of them, and give the same tokens."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import Bucket, Device, Step
from octavo_conformance.oracles.models import ModelSpec, tiny_model

STATIC = Path(__file__).parents[1] / "fixtures" / "static_backend"
PROMPTS = ["The capital of France is", "One", "A library is more than a building with books. It is a promise that"]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True),
    SamplingParams(temperature=1.0, n=3, seed=1, max_tokens=8, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2, repetition_penalty=1.3),
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STATIC))
    yield
    sys.modules.pop("octavo_static", None)


def _generate(backend: str) -> tuple[LLM, list[list[int]]]:
    llm = LLM(
        "demo", backend=backend, dtype="float32", max_model_len=64, max_num_seqs=8, max_num_batched_tokens=12,
        check_integrity=True,
    )  # fmt: skip
    results = llm.generate(PROMPTS, PARAMS)
    return llm, [output.token_ids for result in results for output in result.outputs]


@pytest.mark.parametrize("backend", ["static", "capturing"])
def test_padded_steps_give_the_tokens_of_unpadded_ones(installed: None, backend: str) -> None:
    _, expected = _generate("cpu")
    llm, tokens = _generate(backend)
    assert tokens == expected
    buckets = llm.engine._runner._device.buckets
    padded = [bucket for bucket in buckets if bucket.tokens]
    sizes = {size for bucket in padded for size in (bucket.tokens, bucket.sequences, bucket.blocks, bucket.rows)}
    assert padded
    assert sizes <= {8, 16, 32, 64}
    assert len(set(buckets)) == len(buckets)
    if backend == "capturing":
        assert all(bucket.decode_only for bucket in padded)
        assert not all(bucket.tokens for bucket in buckets)


@pytest.fixture
def compiled(installed: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Step, Bucket]]:
    """What `static` was asked to compile."""
    kind, asked = import_module("octavo_static").StaticDevice, []
    original = kind.compile

    def compile_recorded(device: Device, step: Step, bucket: Bucket) -> Step:
        asked.append((step, bucket))
        return original(device, step, bucket)

    monkeypatch.setattr(kind, "compile", compile_recorded)
    return asked


@pytest.fixture
def mixed_workload(compiled: list[tuple[Step, Bucket]]) -> list[tuple[Step, Bucket]]:
    """What `static` compiles for 60 requests on 32 lanes, prefills of all lengths beside decodes."""
    llm = LLM(
        tiny_model(ModelSpec("llama")).directory, backend="static", dtype="float32", kv_cache_memory="1MiB",
        block_size=4, max_model_len=64, max_num_seqs=32, max_num_batched_tokens=64,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = [
        SamplingParams(
            temperature=number % 2, max_tokens=int(rng.integers(1, 12)), ignore_eos=True,
            prompt_logprobs=0 if number % 10 == 0 else None,
        )
        for number in range(60)
    ]  # fmt: skip
    results = llm.generate([rng.integers(0, 256, rng.integers(2, 30)).tolist() for _ in params], params)
    llm.close()
    assert all(result.error is None for result in results)
    return compiled


def test_a_padded_prefill_has_few_rows_or_one_for_each_lane_or_one_for_each_token(
    mixed_workload: list[tuple[Step, Bucket]],
) -> None:
    rows = defaultdict(set)
    for _, bucket in mixed_workload:
        if not bucket.decode_only:
            rows[bucket.tokens].add(bucket.rows)
    assert rows[64] >= {32, 64}
    assert all(found <= {8, min(32, tokens), tokens} for tokens, found in rows.items())


def test_all_sizes_of_a_variant_are_compiled_from_one_step(mixed_workload: list[tuple[Step, Bucket]]) -> None:
    steps = defaultdict(set)
    for step, bucket in mixed_workload:
        steps[bucket.variant].add(step)
    assert len(steps) > 1
    assert len(mixed_workload) > 2 * len(steps)
    assert all(len(found) == 1 for found in steps.values())
    assert len(set.union(*steps.values())) == len(steps)


@pytest.mark.parametrize("params", [SamplingParams(n=12, max_tokens=2), SamplingParams(n=12, prompt_logprobs=0)])
def test_a_prompt_of_fewer_tokens_than_completions_has_a_row_for_each_of_them(
    installed: None, params: SamplingParams
) -> None:
    llm = LLM(
        tiny_model(ModelSpec("llama")).directory, backend="static", dtype="float32", kv_cache_memory="1MiB",
        block_size=4, max_model_len=64, max_num_seqs=12, max_num_batched_tokens=32,
    )  # fmt: skip
    (result,) = llm.generate([[1, 2, 3]], params)
    assert result.error is None
    assert len([output for output in result.outputs if output.token_ids]) == 12
