"""One completion as it grows: its text, its logprobs, and the reason it ends."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.models.tokenizer import Tokenizer
from octavo.outputs import SequenceUpdate, TokenLogprobs
from octavo.sampling.params import SamplingParams
from octavo.scheduling import FinishReason
from octavo.text import Detokenizer


class Completion:
    """Folds sampled tokens into text and finds the end.

    index: which of the request's `n` completions. eos_token_ids: end the completion unless params.ignore_eos.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: frozenset[int],
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._eos = frozenset() if params.ignore_eos else eos_token_ids
        self._ends = self._eos.union(params.stop_token_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = params.max_tokens
        self._detokenizer = Detokenizer(
            tokenizer.backend_tokenizer, params.stop, prompt_token_ids=prompt_token_ids, texts=tokenizer.token_texts
        )
        self._has_stops = bool(params.stop)
        self._token_ids: tuple[int, ...] = ()  # those not taken yet, one as a rule
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        self._told = False  # whether the end was reported

    def append(self, token_id: int, logprobs: TokenLogprobs | None = None) -> FinishReason | None:
        """Take one token; returns the reason when it is the last one.

        A token that ends the completion counts as generated and is reported, but is not part of the text.
        """
        number = self.num_tokens = self.num_tokens + 1
        self._token_ids += (token_id,)
        if logprobs is not None:
            self._logprobs += (logprobs,)
        if token_id in self._ends and number > self._min_tokens:
            return self.finish(FinishReason.STOP, None if token_id in self._eos else token_id)
        self._detokenizer.append(token_id, may_stop=number >= self._min_tokens)
        if self._has_stops and self._detokenizer.stopped is not None:
            return self.finish(FinishReason.STOP, self._detokenizer.stopped)
        if number == self._max_tokens:
            return self.finish(FinishReason.LENGTH)
        return None

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> FinishReason:
        """End the completion; text that was held back for a stop string is let go."""
        if self._detokenizer.stopped is None:
            self._detokenizer.flush()
            if self._detokenizer.stopped is not None:  # the last bytes completed a stop string
                reason, stop_reason = FinishReason.STOP, self._detokenizer.stopped
        self.finish_reason, self.stop_reason = reason, stop_reason
        return reason

    def take(self) -> SequenceUpdate | None:
        """What was gained since the last call; None where that is nothing. The end is told once."""
        reason = self.finish_reason
        if self._told or not (self._token_ids or reason):
            return None
        self._told = reason is not None
        text, token_ids, logprobs = self._detokenizer.take_text(), self._token_ids, self._logprobs
        self._token_ids = self._logprobs = ()
        if reason is None:
            return SequenceUpdate(self.index, text, token_ids, logprobs)
        return SequenceUpdate(self.index, text, token_ids, logprobs, reason.value, self.stop_reason)
