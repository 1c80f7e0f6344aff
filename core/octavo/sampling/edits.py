"""The logits one sequence rewrites at each step: bias, penalties, and tokens that min_tokens holds back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.inputs import MASKED
from octavo.sampling.params import SamplingParams

# Far beyond any use, and small enough that no product with a logit or a mask overflows float32.
_LARGEST_REPETITION = 1e4


class LogitEdits:
    """The edits of one sequence, kept up to date token by token; see `SamplingInputs` for what an edit does.

    Repetition covers prompt and output tokens; presence and frequency cover output tokens, as in vLLM and the
    OpenAI API.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        end_token_ids: Iterable[int],
        vocab_size: int,
    ) -> None:
        # An id the model has no logit for cannot be chosen, and so needs no edit.
        self._bias = {token: bias for token, bias in params.logit_bias.items() if token < vocab_size}
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._repetition = min(max(params.repetition_penalty, 1.0 / _LARGEST_REPETITION), _LARGEST_REPETITION)
        self._min_tokens = params.min_tokens
        self._penalises = self._repetition != 1.0 or self._presence != 0.0 or self._frequency != 0.0
        held = dict.fromkeys(token for token in end_token_ids if token < vocab_size)
        self._held = tuple(held) if self._min_tokens > 0 else ()
        self._holding = bool(self._held)
        self._slots: dict[int, int] = {}  # token id -> its column
        self._counts: dict[int, int] = {}  # output tokens; kept only where something is penalised
        self._seen = 0
        self._ids = np.zeros(16, np.int32)
        self._values = np.zeros((3, 16), np.float32)  # bias, repetition, penalty
        for token, value in self._bias.items():
            self._set(token, 0, value)
        for token in self._held:
            self._set(token, 0, MASKED)
        if self._repetition != 1.0:
            for token in dict.fromkeys(prompt_token_ids):
                self._set(token, 1, self._repetition)

    @property
    def in_use(self) -> bool:
        """Whether there is an edit, or will be once a token was put out."""
        return self._penalises or self.size > 0

    @property
    def size(self) -> int:
        """Number of edits; 0 when this step's logits stay as they are."""
        return len(self._slots)

    @property
    def follow_output(self) -> bool:
        """Whether they depend on which tokens were put out, and not only on how many."""
        return self._penalises

    def record(self, output_token_ids: Sequence[int], num_pending: int = 0) -> None:
        """Take in the output tokens not seen before; they are only ever appended to.

        num_pending: further ones that nobody knows yet; there are none where `follow_output`. A pending one may be
        sampled again, after a failure, so that there are fewer than before.
        """
        if self._held:
            self._hold(len(output_token_ids) + num_pending < self._min_tokens)
        if not self._penalises:
            return
        for position in range(self._seen, len(output_token_ids)):
            token = output_token_ids[position]
            count = self._counts[token] = self._counts.get(token, 0) + 1
            self._set(token, 1, self._repetition)
            self._set(token, 2, -(self._presence + self._frequency * count))
        self._seen = len(output_token_ids)

    def write(self, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Into one row of a batch: ids [edits], values [3, edits] for bias, repetition, penalty."""
        ids[: self.size] = self._ids[: self.size]
        values[:, : self.size] = self._values[:, : self.size]

    def _hold(self, holding: bool) -> None:
        if holding == self._holding:
            return
        self._holding = holding
        for token in self._held:
            self._set(token, 0, MASKED if holding else self._bias.get(token, 0.0))
        if not holding and not self._penalises and not self._bias:
            self._slots.clear()

    def _set(self, token: int, which: int, value: float) -> None:
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            if slot == self._ids.shape[0]:
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._values = np.concatenate([self._values, np.zeros_like(self._values)], axis=1)
            self._ids[slot] = token
            self._values[:, slot] = (0.0, 1.0, 0.0)
        self._values[which, slot] = value
