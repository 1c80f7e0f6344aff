"""The workload is the same for everybody who names the same seed, and is what it says it is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from octavo_server.bench.errors import BenchError
from octavo_server.bench.text import TEXT
from octavo_server.bench.workload import OUTPUT_LENGTHS, PROMPT_LENGTHS, Lengths, Workload, make_workload

TEXT_IDS = range(1000, 2500)


def _workload(seed: int = 0, num_requests: int = 32) -> Workload:
    return make_workload(TEXT_IDS, num_requests, seed)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_default_workload_has_the_stated_tokens_whatever_the_seed(seed: int) -> None:
    workload = _workload(seed)
    assert (workload.prompt_tokens, workload.output_tokens) == (5169, 2061)
    facts = workload.describe()
    assert (facts["shortest_prompt"], facts["longest_prompt"]) == (16, 460)
    assert (facts["shortest_output"], facts["longest_output"]) == (8, 172)


def test_same_seed_deals_the_same_requests_and_another_seed_others() -> None:
    assert _workload(7) == _workload(7)
    assert _workload(7).requests != _workload(8).requests


def test_prompts_are_stretches_of_the_text_and_no_two_start_alike() -> None:
    workload = _workload()
    for request in workload.requests:
        ids = request.prompt_token_ids
        steps = {(later - earlier) % len(TEXT_IDS) for earlier, later in pairwise(ids)}
        assert steps == {1}
    assert len({request.prompt_token_ids[0] for request in workload.requests}) == len(workload.requests)


def test_more_requests_than_the_text_has_tokens_are_possible() -> None:
    assert len(make_workload([5, 6, 7], 10, 0).requests) == 10


def test_lengths_hold_both_ends_and_favour_short_ones() -> None:
    lengths = Lengths(10, 110, skew=2.0).spread(5)
    assert lengths == [10, 16, 35, 66, 110]  # 10 + 100 * (0, 1/16, 1/4, 9/16, 1)
    assert Lengths(10, 110, skew=2.0).spread(1) == [10]


@pytest.mark.parametrize("text", ["", "a:b", "9:8", "0:5", "1:2:3"])
def test_unusable_range_is_one_sentence_that_names_the_option(text: str) -> None:
    with pytest.raises(BenchError, match="--prompt-tokens"):
        Lengths.parse("--prompt-tokens", text, 1.0)


def test_one_number_is_a_range_of_one_length() -> None:
    assert Lengths.parse("--prompt-tokens", "128", 2.0) == Lengths(128, 128, 2.0)


def test_text_is_long_enough_for_the_longest_prompt() -> None:
    assert len(TEXT.split()) > PROMPT_LENGTHS.longest + OUTPUT_LENGTHS.longest


def test_no_requests_or_no_text_is_refused() -> None:
    with pytest.raises(BenchError, match="at least 1 request"):
        make_workload(TEXT_IDS, 0, 0)
    with pytest.raises(BenchError, match="no tokens"):
        make_workload([], 1, 0)
