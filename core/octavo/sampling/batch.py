"""From the rows of a step to the arrays the sampler reads. NumPy on the host, a few microseconds a row."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.edits import LogitEdits
from octavo.sampling.inputs import CANDIDATES, SamplerFeatures, SamplingInputs, Truncation
from octavo.sampling.params import MAX_LOGPROBS, SamplingParams

_LOGPROB_BUCKETS = (0, 5, MAX_LOGPROBS)
_EDIT_WIDTHS = (8, 4)  # the smallest width of the edit arrays, and by what it grows: few shapes are compiled
_FEW_EDIT_WIDTHS = (64, 16)
# A temperature below this is greedy: the softmax of any two different logits is then 1 and 0 in float32.
_LOWEST_TEMPERATURE = 1e-5
_HIGHEST_TEMPERATURE = 1e30
_SCALARS = struct.Struct("=fffii")  # temperature, top_p, min_p, top_k, seed


class SequenceSampling:
    """What the sampler needs of one sequence, worked out once. Owned by the sequence, fed by `build_inputs`.

    seed: int32, from `derive_seed`. end_token_ids: end-of-sequence and stop tokens, which min_tokens holds
    back (none of them where nothing ends the sequence, that is, with `ignore_eos` and no stop_token_ids).
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        seed: int,
        end_token_ids: Iterable[int] = (),
        *,
        vocab_size: int,
    ) -> None:
        self.params = params
        temperature = min(params.temperature, _HIGHEST_TEMPERATURE)
        self.random = temperature >= _LOWEST_TEMPERATURE
        top_k = min(params.top_k, vocab_size) if params.top_k > 0 else vocab_size
        self.scalars = _SCALARS.pack(temperature if self.random else 0.0, params.top_p, params.min_p, top_k, seed)
        """Its row of the table that `build_inputs` makes."""
        edits = LogitEdits(params, prompt_token_ids, end_token_ids, vocab_size)
        self.edits = edits if edits.in_use else None
        self.follows_output = edits.follow_output
        """Whether a row depends on which tokens were put out: then each must be known before the next is sampled."""
        self.plain = self.edits is None and params.logprobs is None
        """Whether `scalars` are all that its rows ask for."""


@dataclass(slots=True)
class RowSpec:
    """One row of logits. Read by `build_inputs`; then it may change.

    position: of the token to be chosen, counted from the start of the prompt; with the seed it keys the draw.
    target: for prompt logprobs, the token that stands at that position; such a row reports and does not draw.
    mask_bits: int32 [ceil(vocabulary / 32)], the tokens a grammar allows; see `SamplingInputs`.
    num_pending: output tokens after `output_token_ids` that are not known yet; none where sampling.follows_output.
    """

    sampling: SequenceSampling
    output_token_ids: Sequence[int]
    position: int
    target: int = -1
    mask_bits: NDArray[np.int32] | None = None
    num_pending: int = 0


_Numbered = Sequence[tuple[int, RowSpec]]
"""Rows with their places in the step."""


def build_inputs(
    rows: Sequence[RowSpec], num_rows: int, vocab_size: int, few_variants: bool = False
) -> tuple[SamplingInputs, SamplerFeatures]:
    """Arrays of num_rows rows (the bucket; at least len(rows)), the rest padded with greedy rows, and their
    features.

    few_variants: for a device that compiles each of them for seconds or minutes. They do then a little more than
    these rows need.
    """
    padding = num_rows - len(rows)
    idle = _SCALARS.pack(0.0, 1.0, 0.0, vocab_size, 0)
    scalars = [row.sampling.scalars for row in rows] + [idle] * padding
    targets = np.full(num_rows, -1, np.int32)
    special = [
        (index, row)
        for index, row in enumerate(rows)
        if not row.sampling.plain or row.target >= 0 or row.mask_bits is not None
    ]
    for index, row in special:
        if row.target >= 0:
            scalars[index], targets[index] = idle, row.target
    table = np.frombuffer(b"".join(scalars), np.int32).reshape(num_rows, -1).T.copy()  # a contiguous row for each
    temperatures, top_p, min_p = table[:3].view(np.float32)
    top_k, seeds = table[3:]

    widths = _FEW_EDIT_WIDTHS if few_variants else _EDIT_WIDTHS
    edit_ids, edit_values = _edits(special, num_rows, widths)
    mask_bits = _masks(special, num_rows, vocab_size)
    random = bool(temperatures.any())
    features = SamplerFeatures(
        random=random,
        truncation=_truncation(temperatures > 0, top_k, top_p, min_p, vocab_size) if random else Truncation.NONE,
        edits=edit_ids is not None,
        mask=mask_bits is not None,
        logprobs=_logprobs(special),
    )
    if few_variants:
        features = features.covering(MAX_LOGPROBS)
        if features.edits and edit_ids is None:
            edit_ids, edit_values = _no_edits(num_rows, widths[0])
    inputs = SamplingInputs(
        temperatures=temperatures,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seeds=seeds,
        positions=np.array([row.position for row in rows] + [0] * padding, np.int32),
        targets=targets,
        edit_ids=edit_ids,
        edit_bias=None if edit_values is None else edit_values[0],
        edit_repetition=None if edit_values is None else edit_values[1],
        edit_penalty=None if edit_values is None else edit_values[2],
        mask_bits=mask_bits,
    )
    return inputs, features


def _truncation(
    drawn: NDArray[np.bool_],
    top_k: NDArray[np.int32],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
    vocab_size: int,
) -> Truncation:
    if top_k[drawn].max() <= CANDIDATES:
        return Truncation.CANDIDATES
    if top_k[drawn].min() < vocab_size:
        return Truncation.FULL
    if top_p[drawn].min() < 1.0:
        return Truncation.NUCLEUS
    return Truncation.FLOOR if min_p[drawn].max() > 0.0 else Truncation.NONE


def _edits(
    rows: _Numbered, num_rows: int, widths: tuple[int, int]
) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    editing = []
    for index, row in rows:
        if (edits := row.sampling.edits) is not None and row.target < 0:
            edits.record(row.output_token_ids, row.num_pending)
            if edits.size:
                editing.append((index, edits))
    if not editing:
        return None, None
    most = max(edits.size for _, edits in editing)
    width, factor = widths
    while width < most:
        width *= factor
    ids, values = _no_edits(num_rows, width)
    for index, edits in editing:
        edits.write(ids[index], values[:, index])
    return ids, values


def _no_edits(num_rows: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Edits that change nothing: ids, and bias, repetition and penalty."""
    values = np.zeros((3, num_rows, width), np.float32)
    values[1] = 1.0
    return np.zeros((num_rows, width), np.int32), values


def _masks(rows: _Numbered, num_rows: int, vocab_size: int) -> NDArray[np.int32] | None:
    masked = [(index, row.mask_bits) for index, row in rows if row.mask_bits is not None]
    if not masked:
        return None
    bits = np.full((num_rows, -(-vocab_size // 32)), -1, np.int32)
    for index, mask in masked:
        bits[index] = mask
    return bits


def _logprobs(rows: _Numbered) -> int | None:
    params = [(row.sampling.params, row.target) for _, row in rows]
    wanted = {each.logprobs if target < 0 else each.prompt_logprobs for each, target in params}
    most = max((count for count in wanted if count is not None), default=None)
    return None if most is None else next(bucket for bucket in _LOGPROB_BUCKETS if bucket >= most)
