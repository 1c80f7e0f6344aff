"""Greedy float32 tokens equal those of transformers, whatever the schedule does to a request."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import LLM, SamplingParams

from .conftest import Oracle
from .prompts import PROMPTS

TOKENS = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

SCHEDULES: dict[str, dict[str, Any]] = {
    "batched": {"max_num_seqs": 64, "enable_prefix_caching": False},
    "chunked prefill": {"max_num_seqs": 24, "max_num_batched_tokens": 40, "enable_prefix_caching": False},
    "prefix caching": {"max_num_seqs": 32},
    # 24 MiB hold about 530 tokens of this model in float32: a few requests at a time, and they push each other out.
    "preemption": {"max_num_seqs": 16, "kv_cache_memory": "24MiB", "max_model_len": 400},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_greedy_tokens_equal_those_of_transformers(schedule: str, oracle: Oracle) -> None:
    llm = LLM("demo", backend="cpu", dtype="float32", check_integrity=True, **SCHEDULES[schedule])
    if schedule == "prefix caching":
        llm.generate(PROMPTS[-16:], SamplingParams(temperature=0.0, max_tokens=1))  # so that there is something to find
    results = llm.generate(PROMPTS, GREEDY)
    agreed = [oracle.check_greedy(result.prompt_token_ids, result.outputs[0].token_ids) for result in results]
    assert [len(result.outputs[0].token_ids) for result in results] == [TOKENS] * len(PROMPTS)
    # Near-ties are rare: were they the rule, the comparison above would say nothing.
    assert sum(agreed) >= 0.97 * TOKENS * len(PROMPTS)

    stats = llm.engine.stats()
    assert stats.kv_used_slots == 0, "finished requests still hold blocks"
    if schedule == "preemption":
        assert stats.num_preemptions > 0
    if schedule == "prefix caching":
        assert stats.prefix_cache_hits > 0
