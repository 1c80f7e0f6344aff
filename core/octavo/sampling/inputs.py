"""What the sampler reads: arrays for the rows of one step, and the static features that select its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

Array = Any

MASKED = -1e20
"""Added to a logit that must not be chosen. Finite, so that no sum of masks and penalties can become NaN."""

CANDIDATES = 64
"""The largest top_k for which a row's draw is made among its best tokens alone."""


class Truncation(Enum):
    """How much of the vocabulary the random rows of a batch may draw from.

    The draw of a row is the same under each member that covers it; they differ in cost.
    """

    NONE = "none"  # every row draws from the whole vocabulary
    CANDIDATES = "candidates"  # every random row has a top_k of at most CANDIDATES; any top_p and min_p
    FLOOR = "floor"  # some row has a min_p, none a top_k or top_p
    NUCLEUS = "nucleus"  # some row has a top_p, none a top_k
    FULL = "full"  # anything


@dataclass(frozen=True, slots=True)
class SamplerFeatures:
    """Static switches: a device that compiles ahead of time compiles one sampler for each value in use.

    random: some row has a temperature. truncation: see Truncation; NONE unless `random`. edits: the edit
    arrays are given. mask: mask_bits is given. logprobs: None reports nothing; otherwise the chosen token's,
    and this many most likely ones.
    """

    random: bool = False
    truncation: Truncation = Truncation.NONE
    edits: bool = False
    mask: bool = False
    logprobs: int | None = None

    def covering(self, most_logprobs: int) -> SamplerFeatures:
        """One of few features under which the same is drawn and at least the same is reported."""
        truncation = _COVERING.get(self.truncation, self.truncation)
        if not self.edits and self.logprobs is None:
            return replace(self, truncation=truncation)
        return replace(self, truncation=truncation, edits=True, logprobs=most_logprobs)


_COVERING = {Truncation.FLOOR: Truncation.NUCLEUS, Truncation.CANDIDATES: Truncation.FULL}


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """One row for each row of logits; NumPy on the host, device arrays once uploaded. Set by `build_inputs`.

    A row's edits rewrite single logits: x -> repeat(x + bias) + penalty, where repeat divides a positive
    logit by the repetition penalty and multiplies a negative one by it. Ids within a row are distinct;
    padding has bias and penalty 0 and repetition 1.
    """

    temperatures: Array  # f32 [rows]; 0 is greedy
    top_k: Array  # i32 [rows], 1 .. vocabulary
    top_p: Array  # f32 [rows], (0, 1]
    min_p: Array  # f32 [rows], [0, 1]
    seeds: Array  # i32 [rows]
    positions: Array  # i32 [rows], of the token to be chosen
    targets: Array  # i32 [rows], the token whose logprob to report; -1 for the chosen one
    edit_ids: Array | None = None  # i32 [rows, edits]
    edit_bias: Array | None = None  # f32 [rows, edits]
    edit_repetition: Array | None = None  # f32 [rows, edits]
    edit_penalty: Array | None = None  # f32 [rows, edits]
    mask_bits: Array | None = None  # i32 [rows, ceil(vocabulary / 32)]; bit i % 32 of word i // 32 allows id i


@dataclass(frozen=True, slots=True)
class SamplerOutputs:
    """What one step chose. Logprobs are those of the raw logits: before edits, temperature and truncation."""

    token_ids: Array  # i32 [rows]
    logprobs: Array | None = None  # f32 [rows], of the target, or of the chosen token where there is none
    ranks: Array | None = None  # i32 [rows], 1 is the most likely
    top_ids: Array | None = None  # i32 [rows, k], in order
    top_logprobs: Array | None = None  # f32 [rows, k]
