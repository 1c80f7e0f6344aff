from __future__ import annotations

import numpy as np
import pytest

from octavo.backend.ops import Ops
from octavo.sampling import (
    RowSpec,
    SamplerFeatures,
    SamplingParams,
    SequenceSampling,
    Truncation,
    build_inputs,
    sample,
)

VOCABULARY = 1000


def build(*params: SamplingParams, num_rows: int | None = None, few_variants: bool = False, **kwargs):
    rows = [
        RowSpec(SequenceSampling(each, [1, 2], 5, (0,), vocab_size=VOCABULARY), [3], index, **kwargs)
        for index, each in enumerate(params)
    ]
    return build_inputs(rows, num_rows or len(rows), VOCABULARY, few_variants)


def test_plain_greedy_rows_need_no_feature() -> None:
    _, features = build(SamplingParams(temperature=0.0, top_p=0.5, top_k=3, seed=1))
    assert features == SamplerFeatures()


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ([{}], Truncation.NONE),
        ([{"top_k": 50, "top_p": 0.5}, {"temperature": 0.0}], Truncation.CANDIDATES),
        ([{"top_k": 50}, {}], Truncation.FULL),
        ([{"top_k": 65}], Truncation.FULL),
        ([{"top_k": 5000}], Truncation.NONE),
        ([{"top_p": 0.5}, {"min_p": 0.5}], Truncation.NUCLEUS),
        ([{"min_p": 0.5}, {}], Truncation.FLOOR),
    ],
)
def test_truncation_is_as_narrow_as_the_random_rows_allow(mix: list[dict], expected: Truncation) -> None:
    _, features = build(*(SamplingParams(**each) for each in mix))
    assert features.truncation is expected


def test_rows_are_padded_to_the_bucket_with_greedy_rows() -> None:
    inputs, _ = build(SamplingParams(top_k=7, min_p=0.25, top_p=0.5), num_rows=4)
    assert inputs.temperatures.tolist() == [1, 0, 0, 0]
    assert inputs.top_k.tolist() == [7, VOCABULARY, VOCABULARY, VOCABULARY]
    assert inputs.top_p.tolist() == [0.5, 1, 1, 1]
    assert inputs.min_p.tolist() == [0.25, 0, 0, 0]
    assert inputs.targets.tolist() == [-1] * 4
    for array in (inputs.temperatures, inputs.top_p, inputs.min_p):
        assert array.dtype == np.float32
    for array in (inputs.top_k, inputs.seeds, inputs.positions, inputs.targets):
        assert array.dtype == np.int32


def test_the_width_of_the_edits_comes_from_few_buckets() -> None:
    widths = set()
    for count in range(1, 200, 7):
        inputs, features = build(SamplingParams(logit_bias=dict.fromkeys(range(count), 1.0)))
        assert features.edits
        widths.add(inputs.edit_ids.shape[1])
    assert widths == {8, 32, 128, 512}


MIXES: list[dict] = [
    {"temperature": 0.0},
    {},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"top_k": 5},
    {"top_k": 200, "top_p": 0.9},
    {"logprobs": 3},
    {"logprobs": 0},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"logit_bias": dict.fromkeys(range(20), 2.0), "logprobs": 20},
]


def test_few_variants_are_eight_and_widths_besides() -> None:
    found = set()
    for first in MIXES:
        for second in MIXES:
            inputs, features = build(SamplingParams(**first), SamplingParams(**second), few_variants=True)
            assert (inputs.edit_ids is not None) == features.edits
            found.add((features, features.edits and inputs.edit_ids.shape[1]))
    assert len(found) == 8
    wide, _ = build(SamplingParams(logit_bias=dict.fromkeys(range(65), 1.0)), few_variants=True)
    assert wide.edit_ids.shape[1] == 1024


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_few_variants_draw_and_report_the_same(mix: dict) -> None:
    logits = np.random.default_rng(3).normal(0, 2, (3, VOCABULARY)).astype(np.float32)
    params = [SamplingParams(**mix), SamplingParams(temperature=0.0), SamplingParams(**mix)]
    exact, few = (sample(Ops(), logits, *build(*params, few_variants=few_variants)) for few_variants in (False, True))
    assert few.token_ids.tolist() == exact.token_ids.tolist()
    if exact.logprobs is not None:
        assert few.logprobs.tolist() == exact.logprobs.tolist()
        assert few.ranks.tolist() == exact.ranks.tolist()
    if exact.top_ids is not None:
        most = exact.top_ids.shape[1]
        assert few.top_ids[:, :most].tolist() == exact.top_ids.tolist()
        assert few.top_logprobs[:, :most].tolist() == exact.top_logprobs.tolist()


def test_edits_end_with_min_tokens() -> None:
    sampling = SequenceSampling(SamplingParams(min_tokens=2), [1], 0, (9,), vocab_size=VOCABULARY)
    edits = [build_inputs([RowSpec(sampling, [4] * n, n)], 1, VOCABULARY)[1].edits for n in range(4)]
    assert edits == [True, True, False, False]


def test_pending_tokens_count_for_min_tokens_and_may_be_taken_back() -> None:
    sampling = SequenceSampling(SamplingParams(min_tokens=2), [1], 0, (9,), vocab_size=VOCABULARY)
    assert not sampling.follows_output
    steps = [(0, 0), (0, 1), (1, 1), (2, 1), (1, 0), (2, 0)]  # known, pending
    edits = [
        build_inputs([RowSpec(sampling, [4] * known, known + pending, num_pending=pending)], 1, VOCABULARY)[1].edits
        for known, pending in steps
    ]
    assert edits == [True, True, False, False, True, False]


@pytest.mark.parametrize(
    ("params", "follows"),
    [
        ({}, False),
        ({"logit_bias": {3: 1.0}, "min_tokens": 4}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.5}, True),
        ({"frequency_penalty": -0.5}, True),
    ],
)
def test_only_penalties_follow_the_output(params: dict, follows: bool) -> None:
    sampling = SequenceSampling(SamplingParams(**params), [1], 0, (9,), vocab_size=VOCABULARY)
    assert sampling.follows_output == follows


def test_a_prompt_row_reports_and_draws_nothing() -> None:
    params = SamplingParams(logit_bias={3: 1.0}, prompt_logprobs=2)
    inputs, features = build(params, target=17)
    assert features == SamplerFeatures(logprobs=5)
    assert inputs.targets.tolist() == [17]


def test_ids_beyond_the_vocabulary_are_left_out() -> None:
    params = SamplingParams(min_tokens=3, stop_token_ids=[5000], logit_bias={2000: 1.0})
    sampling = SequenceSampling(params, [1], 0, (5000,), vocab_size=VOCABULARY)
    assert not build_inputs([RowSpec(sampling, [], 1)], 1, VOCABULARY)[1].edits


def test_penalties_start_with_the_first_output_token() -> None:
    sampling = SequenceSampling(SamplingParams(presence_penalty=1.0), [1], 0, vocab_size=VOCABULARY)
    assert not build_inputs([RowSpec(sampling, [], 1)], 1, VOCABULARY)[1].edits
    inputs, features = build_inputs([RowSpec(sampling, [8, 8], 3)], 1, VOCABULARY)
    assert features.edits
    assert inputs.edit_ids[0, 0] == 8
    assert inputs.edit_penalty[0].tolist() == [-1.0] + [0.0] * 7
