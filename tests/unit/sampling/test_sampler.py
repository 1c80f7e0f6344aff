from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from octavo.backend import Ops
from octavo.backend.tree import tree_map
from octavo.sampling import RowSpec, SamplingParams, SequenceSampling, Truncation, build_inputs, derive_seed
from octavo.sampling.sampler import edited_logits
from octavo.sampling.truncation import truncate

from .conftest import LIBRARIES, NUMPY, Library

# --------------------------------------------------------------------------------------------- float64 oracle


def oracle_logits(logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]) -> np.ndarray:
    """vLLM's definitions, one token at a time."""
    x = logits.astype(np.float64)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    for token in set(prompt) | set(output):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return x


def oracle_probabilities(x: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Temperature, min_p, top_k, top_p by a plain sort."""
    z = (x - x.max()) / params.temperature
    p = np.exp(z) / np.exp(z).sum()
    p = np.where(p >= params.min_p * p.max() * (1 - 1e-6), p, 0.0)
    order = np.argsort(-p, kind="stable")
    if params.top_k > 0:
        p[order[params.top_k :]] = 0.0
    p /= p.sum()
    if params.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= params.top_p * (1 - 1e-6)]] = 0.0
    return p / p.sum()


def row(params: SamplingParams, vocabulary: int, seed: int = 0, position: int = 3, **kwargs) -> RowSpec:
    output = kwargs.pop("output", [])
    prompt = kwargs.pop("prompt", [])
    ends = kwargs.pop("ends", ())
    sampling = SequenceSampling(params, prompt, seed, ends, vocab_size=vocabulary)
    return RowSpec(sampling, output, position, **kwargs)


def draws(library: Library, logits: np.ndarray, params: SamplingParams, n: int, **kwargs) -> np.ndarray:
    """n draws from one row of logits, at n positions of one seed."""
    chunk = 1024
    found = []
    for start in range(0, n, chunk):
        positions = range(start, min(start + chunk, n))
        rows = [row(params, logits.size, 77, position, **kwargs) for position in positions]
        inputs, features = build_inputs(rows, len(rows), logits.size)
        found.append(library.sample(np.tile(logits, (len(rows), 1)), inputs, features).token_ids)
    return np.concatenate(found)


def assert_follows(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-squared, with the tokens expected less than 8 times in one class; none outside the support."""
    counts = np.bincount(tokens, minlength=probabilities.size)
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * tokens.size
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    if used.sum() > 1:
        assert stats.chisquare(observed[used], expected[used]).pvalue > 1e-4


# ------------------------------------------------------------------------------------------- distribution

DISTRIBUTIONS = {
    "softmax": SamplingParams(),
    "hot": SamplingParams(temperature=3.0),
    "cold": SamplingParams(temperature=0.3),
    "top_k": SamplingParams(top_k=7),
    "large top_k": SamplingParams(top_k=100),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.1),
    "small top_k with top_p and min_p": SamplingParams(top_k=40, top_p=0.9, min_p=0.02, temperature=1.5),
    "large top_k with top_p and min_p": SamplingParams(top_k=90, top_p=0.95, min_p=0.01, temperature=1.5),
}


@pytest.mark.parametrize("params", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_draws_follow_the_truncated_softmax(params: SamplingParams) -> None:
    logits = (np.random.default_rng(1).standard_normal(300) * 2).astype(np.float32)
    tokens = draws(NUMPY, logits, params, 10_000)
    assert_follows(tokens, oracle_probabilities(logits.astype(np.float64), params))


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 128, 129, 1000])
def test_draws_from_a_flat_distribution_are_flat(vocabulary: int) -> None:
    tokens = draws(NUMPY, np.full(vocabulary, 5.0, np.float32), SamplingParams(), 8_000)
    assert_follows(tokens, np.full(vocabulary, 1 / vocabulary))


class OneToken(Ops):
    """A backend whose probabilities are its own: all units go to token 7."""

    def probability_units(self, x: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
        return np.where(np.arange(x.shape[1]) == 7, np.ones_like(x, np.int32) << 30, 0)


@pytest.mark.parametrize("params", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_draws_are_made_from_the_backends_own_units(params: SamplingParams) -> None:
    logits = np.random.default_rng(6).standard_normal(300).astype(np.float32)
    own = Library("numpy", NUMPY.upload, OneToken())
    assert set(draws(own, logits, params, 20).tolist()) == {7}


def test_draws_of_many_seeds_follow_the_softmax(library: Library) -> None:
    logits = (np.random.default_rng(5).standard_normal(200) * 2).astype(np.float32)
    rows = [row(SamplingParams(), 200, derive_seed(1, index)) for index in range(8000)]
    inputs, features = build_inputs(rows, len(rows), 200)
    tokens = library.sample(np.tile(logits, (len(rows), 1)), inputs, features).token_ids
    assert_follows(tokens, oracle_probabilities(logits.astype(np.float64), SamplingParams()))


# ----------------------------------------------------------------------------------------------- truncation


def support(logits: np.ndarray, params: SamplingParams) -> set[int]:
    return set(draws(NUMPY, logits, params, 300).tolist())


@pytest.mark.parametrize("beside", [-1, 64, 1000], ids=["nucleus", "candidates", "full"])
@pytest.mark.parametrize(("top_p", "kept"), [(0.1, 1), (0.3, 2), (0.5, 2), (0.51, 3), (0.75, 3), (0.999, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: int, beside: int) -> None:
    # Four equal tokens scattered over groups: the lowest ids come first.
    logits = np.full(2000, -50.0, np.float32)
    ids = [3, 200, 201, 1500]
    logits[ids] = 1.0
    assert support(logits, SamplingParams(top_p=top_p, top_k=beside)) == set(ids[:kept])


@pytest.mark.parametrize("top_k", [1, 2, 3, 65, 130])
def test_top_k_keeps_exactly_k_tokens_the_lowest_ids_among_equals(top_k: int) -> None:
    logits = np.full(300, 2.0, np.float32)
    logits[299] = 3.0
    expected = {299, *range(top_k - 1)}
    assert support(logits, SamplingParams(top_k=top_k)) <= expected
    flat = np.full(300, 2.0, np.float32)
    assert max(support(flat, SamplingParams(top_k=top_k))) == top_k - 1


def test_min_p_of_one_keeps_the_most_likely_tokens_only() -> None:
    logits = np.array([1.0, 5.0, 4.99, 5.0], np.float32)
    assert support(logits, SamplingParams(min_p=1.0)) == {1, 3}


def test_one_token_is_always_left() -> None:
    logits = (np.random.default_rng(0).standard_normal(500) * 3).astype(np.float32)
    for params in (
        SamplingParams(top_p=1e-9),
        SamplingParams(top_k=1),
        SamplingParams(top_k=100, top_p=1e-9),
    ):
        assert support(logits, params) == {int(logits.argmax())}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 400),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.5),
    st.integers(0, 400),
    st.floats(0.2, 3.0),
)
@example(0, 15, 1.0, 0.0, 0, 0.25)  # tokens of less than half of a unit
def test_truncation_equals_a_sort_in_float64(
    seed: int, vocabulary: int, top_p: float, min_p: float, top_k: int, temperature: float
) -> None:
    # Few distinct values, so that ties at every bound are common.
    logits = np.random.default_rng(seed).integers(-6, 6, vocabulary).astype(np.float32) / 2
    params = SamplingParams(top_p=top_p, min_p=min_p, top_k=top_k, temperature=temperature)
    expected = oracle_probabilities(logits.astype(np.float64), params)
    tokens = draws(NUMPY, logits, params, 256)
    assert (expected[tokens] > 0).all()
    # A draw shows a part of the support only; what bisection keeps can be seen directly.
    inputs, _ = build_inputs([row(params, vocabulary)], 1, vocabulary)
    z = np.exp((logits - logits.max()) / np.float32(temperature))
    units = np.round(z * (2**30 / z.sum())).astype(np.int32)
    padded = np.zeros(-(-vocabulary // 128) * 128, np.int32)
    padded[:vocabulary] = units
    kept = truncate(padded.reshape(1, -1, 128), inputs, Truncation.FULL).reshape(-1)[:vocabulary]
    drawable = units > 0  # the rest have less than half of a unit of 2^-30, and nobody draws them
    np.testing.assert_array_equal((kept > 0)[drawable], (expected > 0)[drawable])
    assert not kept[~drawable].any()
    np.testing.assert_array_equal(kept[kept > 0], units[kept > 0])


# ----------------------------------------------------------------------------------------------- invariance

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([-1, -1, 1, 20, 64, 65, 200]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.dictionaries(st.integers(0, 383), st.floats(-5, 5), max_size=20),
    min_tokens=st.sampled_from([0, 0, 4]),
    logprobs=st.sampled_from([None, None, 0, 3, 20]),
)


@pytest.mark.parametrize("library", LIBRARIES[:2], ids=lambda library: library.name)
@settings(deadline=None, max_examples=40)
@given(st.lists(PARAMS, min_size=2, max_size=8), st.integers(0, 2**32 - 1), st.booleans())
def test_a_row_draws_the_same_token_alone_and_in_any_mix(
    library: Library, mix: list[SamplingParams], seed: int, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = 384
    logits = (rng.standard_normal((len(mix), vocabulary)) * 3).astype(np.float32)
    rows = []
    for index, params in enumerate(mix):
        mask = rng.integers(-(2**31), 2**31, 12).astype(np.int32) if masked and index % 2 else None
        history = rng.integers(0, vocabulary, 6).tolist()
        rows.append(
            row(
                params,
                vocabulary,
                seed % 1000,
                index,
                output=history[:3],
                prompt=history[3:],
                ends=[7],
                mask_bits=mask,
            )
        )
    alone = [
        library.sample(logits[index : index + 1], *build_inputs([spec], 1, vocabulary)).token_ids[0]
        for index, spec in enumerate(rows)
    ]
    padded = np.concatenate([logits, np.full((2, vocabulary), np.nan, np.float32)])
    with np.errstate(invalid="ignore"):
        together = library.sample(padded, *build_inputs(rows, len(rows) + 2, vocabulary)).token_ids
    assert together[: len(rows)].tolist() == alone
    order = rng.permutation(len(rows))
    shuffled = library.sample(logits[order], *build_inputs([rows[i] for i in order], len(rows), vocabulary))
    assert shuffled.token_ids.tolist() == [alone[i] for i in order]


@pytest.mark.parametrize("params", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_library_draws_the_same_tokens(library: Library, params: SamplingParams) -> None:
    logits = (np.random.default_rng(2).standard_normal((512, 1000)) * 3).astype(np.float32)
    inputs, features = build_inputs([row(params, 1000, 5, position) for position in range(512)], 512, 1000)
    expected = NUMPY.sample(logits, inputs, features).token_ids
    actual = library.sample(logits, inputs, features).token_ids
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, expected)


# --------------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("vocabulary", [1, 5, 128, 131, 1024])
def test_greedy_is_the_lowest_id_of_the_largest_logit(library: Library, vocabulary: int) -> None:
    # Integers tie all the time.
    logits = np.random.default_rng(3).integers(-4, 4, (64, vocabulary)).astype(np.float32)
    greedy, mixed = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_p=0.5)
    rows = [row(mixed if index % 3 == 2 else greedy, vocabulary) for index in range(64)]
    tokens = library.sample(logits, *build_inputs(rows, 64, vocabulary)).token_ids
    for index in range(64):
        if index % 3 != 2:
            assert tokens[index] == logits[index].argmax()


def test_a_vanishing_temperature_is_greedy_and_a_huge_one_is_flat() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert support(logits, SamplingParams(temperature=1e-300)) == {1}
    assert_follows(draws(NUMPY, logits, SamplingParams(temperature=1e300), 3000), np.full(3, 1 / 3))


# ---------------------------------------------------------------------------------------------------- edits


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.2, 3.0),
    st.dictionaries(st.integers(0, 19), st.floats(-100, 100), max_size=10),
)
def test_penalties_and_bias_have_vllms_meaning(
    seed: int, presence: float, frequency: float, repetition: float, bias: dict[int, float]
) -> None:
    rng = np.random.default_rng(seed)
    params = SamplingParams(
        presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition, logit_bias=bias
    )
    prompt, output = rng.integers(0, 20, 5).tolist(), rng.integers(0, 20, 30).tolist()
    logits = (rng.standard_normal((1, 20)) * 4).astype(np.float32)
    sampling = row(params, 20, prompt=prompt).sampling
    for end in (0, 1, 17, 30):  # one state, fed as the output grows
        inputs, features = build_inputs([RowSpec(sampling, output[:end], 3)], 1, 20)
        for library in LIBRARIES:
            arrays = tree_map(library.upload, inputs)
            edited = np.asarray(edited_logits(library.ops, library.upload(logits), arrays, features))[0]
            expected = oracle_logits(logits[0], params, prompt, output[:end])
            np.testing.assert_allclose(edited, expected, rtol=1e-5, atol=2e-5)


def test_min_tokens_holds_end_tokens_back_until_it_is_reached(library: Library) -> None:
    logits = np.array([[0.0, 9.0, 8.0, 1.0]], np.float32)
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, min_tokens=2, stop_token_ids=[2], logit_bias={0: 0.5})
        spec = row(params, 4, ends=[1, 2])
        for output in ([], [0]):
            inputs, features = build_inputs([RowSpec(spec.sampling, output, len(output))], 1, 4)
            assert library.sample(logits, inputs, features).token_ids[0] in (0, 3)
        inputs, features = build_inputs([RowSpec(spec.sampling, [0, 0], 2)], 1, 4)
        assert library.sample(logits, inputs, features).token_ids[0] in (1, 2)


def test_a_mask_allows_exactly_its_tokens(library: Library) -> None:
    vocabulary = 100
    allowed = [0, 31, 32, 63, 95, 99]
    mask = np.zeros(4, np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    logits = np.zeros((400, vocabulary), np.float32)
    rows = [row(SamplingParams(), vocabulary, 1, position, mask_bits=mask.view(np.int32)) for position in range(399)]
    rows.append(row(SamplingParams(temperature=0.0, logit_bias={50: 9.0}), vocabulary))
    tokens = library.sample(logits, *build_inputs(rows, 400, vocabulary)).token_ids
    assert set(tokens[:399].tolist()) == set(allowed)
    assert tokens[399] == 50


# ------------------------------------------------------------------------------------------------- logprobs


def test_logprobs_and_ranks_are_those_of_the_raw_logits(library: Library) -> None:
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((6, 200)) * 3).astype(np.float32)
    # Whatever reshapes the draw, the report is of the model's own distribution.
    params = SamplingParams(temperature=0.5, top_k=5, logprobs=3, prompt_logprobs=7, logit_bias={1: 50.0})
    rows = [row(params, 200, 1, position) for position in range(4)]
    rows += [row(params, 200, 1, 9, target=target) for target in (0, 150)]
    inputs, features = build_inputs(rows, 6, 200)
    assert features.logprobs == 20
    outputs = library.sample(logits, inputs, features)
    assert outputs.token_ids[:4].tolist() == [1] * 4
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    for index, token in enumerate([1, 1, 1, 1, 0, 150]):
        assert outputs.logprobs[index] == pytest.approx(expected[index, token], abs=1e-5)
        assert outputs.ranks[index] == 1 + (logits[index] > logits[index, token]).sum()
        order = np.argsort(-logits[index], kind="stable")[:20]
        np.testing.assert_array_equal(outputs.top_ids[index], order)
        np.testing.assert_allclose(outputs.top_logprobs[index], expected[index, order], atol=1e-5)


def test_a_request_without_top_logprobs_reports_the_chosen_one_alone(library: Library) -> None:
    inputs, features = build_inputs([row(SamplingParams(temperature=0.0, logprobs=0), 4)], 1, 4)
    outputs = library.sample(np.array([[0.0, 1.0, 1.0, 0.0]], np.float32), inputs, features)
    assert outputs.ranks.tolist() == [1]
    assert outputs.top_ids is None
