"""Updates folded into whole choices, for answers that are not streamed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo.outputs import RequestUpdate, SequenceUpdate, TokenLogprobs
from octavo.processor import EngineRequest
from octavo_server.api.responses import PromptTokensDetails, Usage


@dataclass
class Choice:
    """One completion so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, update: SequenceUpdate) -> None:
        self.text.append(update.text)
        self.logprobs += update.logprobs
        if update.finish_reason is not None:
            self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason


class UsageCounter:
    """Tokens of all the requests that one HTTP request became."""

    def __init__(self, requests: Iterable[EngineRequest]) -> None:
        self._prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, update: RequestUpdate) -> None:
        self._completion_tokens += sum(len(sequence.token_ids) for sequence in update.sequences)
        if update.metrics is not None:
            self._cached_tokens += update.metrics.num_cached_tokens

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(self._cached_tokens),
        )
