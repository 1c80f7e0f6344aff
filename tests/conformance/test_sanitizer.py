"""The engine's sanitizer changes nothing for a backend that is right, and shows one that reads what is not its own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import AttentionMetadata, Ops, array_ops
from octavo.outputs import CompletionOutput
from octavo.reference.device import ReferenceDevice
from octavo_conformance.oracles.models import VOCABULARY, ModelSpec, tiny_model

BLOCK_BYTES = 2 * 2 * 4 * 2 * 16 * 4  # of a block of 4 tokens: keys and values, layers, slots, heads, size, float32
PROMPTS = [np.random.default_rng(seed).integers(0, VOCABULARY, 5 + 3 * seed).tolist() for seed in range(6)]
PARAMS = [
    SamplingParams(temperature=index % 2, seed=index, n=1 + index % 3, max_tokens=10, ignore_eos=True, logprobs=0)
    for index in range(6)
]


def _llm(blocks: int, **options: Any) -> LLM:
    options = {"backend": "reference", "dtype": "float32", "block_size": 4, "check_integrity": True, **options}
    return LLM(tiny_model(ModelSpec("llama")).directory, kv_cache_memory=(blocks + 1) * BLOCK_BYTES, **options)


def _outputs(llm: LLM) -> list[tuple[list[int], list[float]]]:
    outputs = [output for result in llm.generate(PROMPTS, PARAMS) for output in result.outputs]
    return [(output.token_ids, _logprobs(output)) for output in outputs]


def _logprobs(output: CompletionOutput) -> list[float]:
    assert output.logprobs is not None
    return [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)]


@pytest.fixture
def _faulty_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that takes each context for one token longer than it is, as far as decodes go."""

    class FaultyOps(Ops):
        def paged_attention(self, q: Any, kv: Any, meta: AttentionMetadata, *rest: Any) -> Any:
            if meta.decode_only:
                longer = np.minimum(meta.context_lengths + 1, meta.block_tables.shape[1] * kv.shape[2])
                meta = replace(meta, positions=longer - 1, context_lengths=longer)
            return array_ops.paged_attention(q, kv, meta, *rest)

    monkeypatch.setattr(ReferenceDevice, "ops", FaultyOps())


def test_a_right_backend_gives_the_same_tokens_with_the_sanitizer() -> None:
    with _llm(blocks=14) as plain, _llm(blocks=14, sanitize=True) as sanitized:
        assert _outputs(sanitized) == _outputs(plain)
        assert sanitized.engine.stats().num_preemptions > 0


@pytest.mark.usefixtures("_faulty_attention")
def test_a_read_past_the_context_gives_nan() -> None:
    with _llm(blocks=64, sanitize=True) as llm:
        logprobs = [value for _, values in _outputs(llm) for value in values]
    assert any(math.isnan(value) for value in logprobs)


def test_every_block_that_nobody_owns_holds_nan() -> None:
    with _llm(blocks=20, sanitize=True) as llm:
        llm.generate(PROMPTS[:4], PARAMS[:4])
        engine = llm.engine
        engine.step()  # has nothing to do but to fill what the last one gave back
        pool = engine._blocks._pool
        cached = [block for block in range(pool.num_blocks) if pool.is_cached(block)]
        free = [block for block in range(1, pool.num_blocks) if block not in cached]
        assert cached
        assert free
        for layer in engine._runner._kv:
            assert np.isnan(layer[:, free]).all()
            assert np.isfinite(layer[:, cached]).all()


def test_the_null_block_is_filled_at_the_start() -> None:
    with _llm(blocks=8, sanitize=True) as llm:
        llm.engine.step()
        for layer in llm.engine._runner._kv:
            assert np.isnan(layer).all()
