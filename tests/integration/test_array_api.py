"""Models, runner and sampler use the array-API standard and nothing else: they run where the rest is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams

STRICT = Path(__file__).parents[1] / "fixtures" / "strict_backend"
PROMPTS = ["The capital of France is", "One", "A library is more than a building with books."]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=1),
    SamplingParams(temperature=1.0, n=3, seed=1, top_p=0.9, max_tokens=4, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=2, top_k=500, min_p=0.01, presence_penalty=1.0, max_tokens=4, ignore_eos=True),
]


def test_the_whole_step_runs_on_strict_arrays_with_the_tokens_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STRICT))

    def tokens(backend: str) -> list[list[int]]:
        with LLM(
            "demo", backend=backend, dtype="float32", max_model_len=48, kv_cache_memory="32MiB", max_num_seqs=8,
            max_num_batched_tokens=12, check_integrity=True,
        ) as llm:  # fmt: skip
            results = llm.generate(PROMPTS, PARAMS)
        assert all(result.error is None for result in results)
        return [output.token_ids for result in results for output in result.outputs]

    assert tokens("strict") == tokens("reference")
    sys.modules.pop("octavo_strict", None)
