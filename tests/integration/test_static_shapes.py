"""Devices that compile or capture steps see padded buckets, few of them, and give the same tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams

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
