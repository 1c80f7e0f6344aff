"""What the engine remembers of one request besides its place in the schedule: completions, prompt logprobs, times."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from octavo.completion import Completion
from octavo.models.tokenizer import Tokenizer
from octavo.outputs import Logprob, RequestMetrics, RequestUpdate, TokenLogprobs
from octavo.processor import EngineRequest
from octavo.runner import LogitRow
from octavo.sampling.batch import RowSpec, SequenceSampling
from octavo.sampling.inputs import SamplerOutputs
from octavo.scheduling import Chunk, FinishReason, Request
from octavo.scheduling import Sequence as RunningSequence


class RequestState:
    """One admitted request. `scheduled` is the scheduler's side of it."""

    def __init__(
        self,
        request: EngineRequest,
        scheduled: Request,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        vocab_size: int,
    ) -> None:
        self.request = request
        self.scheduled = scheduled
        params = request.params
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
        self._sampling = [
            SequenceSampling(params, request.prompt_token_ids, seed, ends, vocab_size=vocab_size)
            for seed in scheduled.seeds
        ]
        self.completions = [
            Completion(index, tokenizer, params, request.prompt_token_ids, eos_token_ids) for index in range(params.n)
        ]
        # Where nothing but one completion is asked for.
        self._alone = self.completions[0] if params.n == 1 and params.prompt_logprobs is None else None
        # Rows of what is sampled: one for each sequence, written anew for every step.
        self._rows = [
            LogitRow(0, RowSpec(sampling, sequence.output_token_ids, 0))
            for sampling, sequence in zip(self._sampling, scheduled.sequences, strict=True)
        ]
        self._tokenizer = tokenizer
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # the first token has nothing before it
        self._first_token: float | None = None

    @property
    def started(self) -> bool:
        """Whether a token was sampled."""
        return self._first_token is not None

    @property
    def finish_reason(self) -> str:
        """Why the first completion ended; "" while it runs."""
        reason = self.completions[0].finish_reason
        return "" if reason is None else reason.value

    @property
    def finished(self) -> bool:
        return None not in [completion.finish_reason for completion in self.completions]

    def add_rows(self, rows: list[LogitRow], chunk: Chunk, first_token: int) -> None:
        """Add the logits this request wants of a chunk whose tokens start at `first_token` of the step.

        Prompt positions first, where prompt_logprobs were asked for, then what is sampled.
        """
        if self.request.params.prompt_logprobs is not None:
            prompt = self.request.prompt_token_ids
            for position in self._prompt_positions(chunk):
                spec = RowSpec(self._sampling[0], (), position + 1, prompt[position + 1])
                rows.append(LogitRow(first_token + position - chunk.start, spec))
        if chunk.samples:
            count = chunk.count
            last, stop = first_token + count - 1, chunk.start + count
            for receiver in chunk.receivers if chunk.samples > 1 else (chunk.sequence,):
                row = self._rows[receiver.index]
                row.token, row.lane = last, receiver.lane
                spec = row.spec
                spec.position, spec.num_pending = stop, receiver.num_pending
                rows.append(row)

    def commit(
        self, chunk: Chunk, outputs: SamplerOutputs, row: int, stop: int, token_ids: Sequence[int]
    ) -> Sequence[tuple[RunningSequence, FinishReason]]:
        """Take a chunk's rows of the outputs, `row` to `stop`, and the tokens sampled from it.

        Returns the sequences that ended, with the reason. Those that had ended before are passed over.
        """
        params = self.request.params
        while row < stop - chunk.samples:
            token = self.request.prompt_token_ids[len(self._prompt_logprobs)]
            self._prompt_logprobs.append(self._logprobs(outputs, row, token, params.prompt_logprobs or 0))
            row += 1
        if not token_ids:
            return ()
        if self._first_token is None:
            self._first_token = time.time()
        asked = params.logprobs
        if asked is None and chunk.samples == 1:  # nearly every chunk, and so worth lines of its own
            sequence = chunk.sequence
            reason = self.completions[sequence.index].append(token_ids[0])
            return () if reason is None else ((sequence, reason),)
        ended: list[tuple[RunningSequence, FinishReason]] = []
        for sequence, token in zip(chunk.receivers, token_ids, strict=True):
            if not sequence.is_finished:
                logprobs = None if asked is None else self._logprobs(outputs, row, token, asked)
                reason = self.completions[sequence.index].append(token, logprobs)
                if reason is not None:
                    ended.append((sequence, reason))
            row += 1
        return ended

    def take(self, error: str | None = None) -> RequestUpdate:
        """What the request gained since the last call."""
        if self._alone is not None and self._alone.finish_reason is None and (part := self._alone.take()) is not None:
            return RequestUpdate(self.request.request_id, (part,))  # nearly every update, and so worth lines of its own
        parts = tuple([update for completion in self.completions if (update := completion.take()) is not None])
        request, prompt_logprobs = self.request, None
        if request.params.prompt_logprobs is not None and len(self._prompt_logprobs) == len(request.prompt_token_ids):
            prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        if self.finished:
            return RequestUpdate(request.request_id, parts, True, prompt_logprobs, self._metrics(), error)
        return RequestUpdate(request.request_id, parts, False, prompt_logprobs)

    def end(self, reason: FinishReason) -> None:
        """End every completion that still runs."""
        for completion in self.completions:
            if completion.finish_reason is None:
                completion.finish(reason)

    # ---------------------------------------------------------------------------------------------------- details

    def _prompt_positions(self, chunk: Chunk) -> range:
        """Positions of the chunk whose successor is a prompt token with a logprob still to come."""
        if not self._prompt_logprobs:
            return range(0)
        # A preempted prompt is computed again; what it reported already is not reported twice.
        start = max(chunk.start, len(self._prompt_logprobs) - 1)
        return range(start, min(chunk.start + chunk.count, len(self.request.prompt_token_ids) - 1))

    def _logprobs(self, outputs: SamplerOutputs, row: int, token: int, top: int) -> TokenLogprobs:
        """Logprobs of one row: `token`, chosen or given, and the `top` most likely ones."""
        text = self._tokenizer.token_text
        # The sampler reports them whenever a row of the step asked for any, so they are there.
        logprobs, ranks = np.asarray(outputs.logprobs), np.asarray(outputs.ranks)
        chosen = Logprob(float(logprobs[row]), int(ranks[row]), text(token))
        if top == 0:
            return TokenLogprobs(token, chosen)
        ids, values = np.asarray(outputs.top_ids)[row, :top], np.asarray(outputs.top_logprobs)[row, :top]
        best = tuple(
            (int(other), Logprob(float(value), rank, text(int(other))))
            for rank, (other, value) in enumerate(zip(ids, values, strict=True), start=1)
        )
        return TokenLogprobs(token, chosen, best)

    def _metrics(self) -> RequestMetrics:
        sequences = self.scheduled.sequences
        return RequestMetrics(
            arrival_time=self.request.arrival_time,
            first_scheduled_time=sequences[0].first_scheduled_time,
            first_token_time=self._first_token,
            finished_time=time.time(),
            num_cached_tokens=sequences[0].num_cached_tokens,
            num_preemptions=sum(sequence.num_preemptions for sequence in sequences),
        )
