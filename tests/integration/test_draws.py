"""A seeded request draws the same tokens alone, in any batch and after preemption; draws follow the softmax."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from octavo import LLM, SamplingParams

from .conftest import Oracle
from .prompts import PROMPTS

DRAW = SamplingParams(temperature=0.9, top_p=0.95, seed=1234, max_tokens=48, ignore_eos=True)
PROMPT = "Write three words about the sea:"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", backend="cpu", dtype="float32", check_integrity=True)


def _tokens(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[list[int]]:
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params)]


def test_a_seed_draws_the_same_tokens_alone_and_in_a_batch_of_32(llm: LLM) -> None:
    alone = _tokens(llm, [PROMPT], [DRAW])[0]
    # Neighbours with every other way to sample, so that a leak from row to row would show.
    others = [
        SamplingParams(
            temperature=(index % 4) * 0.5,
            top_k=(-1, 5, 200)[index % 3],
            min_p=0.05 * (index % 2),
            presence_penalty=0.5 * (index % 2),
            repetition_penalty=1.0 + 0.1 * (index % 5),
            max_tokens=20 + index,
            ignore_eos=True,
        )
        for index in range(31)
    ]
    batch = _tokens(llm, [*PROMPTS[:15], PROMPT, *PROMPTS[15:31]], [*others[:15], DRAW, *others[15:]])
    assert batch[15] == alone
    assert _tokens(llm, [PROMPT], [DRAW])[0] == alone


def test_a_seed_draws_the_same_tokens_after_preemption(llm: LLM) -> None:
    alone = _tokens(llm, [PROMPT], [DRAW])[0]
    small = LLM(
        "demo", backend="cpu", dtype="float32", kv_cache_memory="8MiB", max_model_len=128, check_integrity=True,
        enable_prefix_caching=False,
    )  # fmt: skip
    crowd = [PROMPT] * 12
    # The last to arrive is the first to be preempted.
    drawn = small.generate(crowd, [SamplingParams(temperature=1.0, max_tokens=48, ignore_eos=True)] * 11 + [DRAW])
    assert drawn[-1].metrics is not None
    assert drawn[-1].metrics.num_preemptions > 0
    assert drawn[-1].outputs[0].token_ids == alone


def test_different_seeds_and_siblings_draw_different_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, n=8, seed=5, max_tokens=16, ignore_eos=True)
    outputs = llm.generate(PROMPT, params)[0].outputs
    assert len({tuple(output.token_ids) for output in outputs}) == 8
    again = llm.generate(PROMPT, params)[0].outputs
    assert [output.token_ids for output in outputs] == [output.token_ids for output in again]


def test_sampled_frequencies_match_the_softmax_of_transformers(llm: LLM, oracle: Oracle) -> None:
    prompt = llm.tokenizer.encode("My favourite animal is the")
    logits = oracle.logits(prompt)[-1].double().numpy()
    temperature = 0.8
    odds = np.exp((logits - logits.max()) / temperature)
    odds /= odds.sum()
    draws = 64 * 40
    params = [SamplingParams(temperature=temperature, n=64, seed=seed, max_tokens=1) for seed in range(40)]
    counts = Counter(output.token_ids[0] for result in llm.generate([prompt] * 40, params) for output in result.outputs)
    frequent = [token for token in np.argsort(-odds) if odds[token] * draws >= 8]
    observed = [counts[token] for token in frequent]
    expected = [odds[token] * draws for token in frequent]
    observed.append(draws - sum(observed))
    expected.append(draws - sum(expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3
