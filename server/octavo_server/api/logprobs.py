"""Logprobs in the formats of the two APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from octavo.outputs import Logprob, TokenLogprobs
from octavo_server.api.responses import ChatLogprobs, ChatTokenLogprob, ChatTopLogprob, CompletionLogprobs

LOWEST = -9999.0  # what OpenAI reports for probability zero; JSON has no -Infinity


TokenBytes = Callable[[int], bytes]
"""The bytes of a token id: a token may be part of a character, which its text cannot show."""


def chat_logprobs(tokens: Sequence[TokenLogprobs], token_bytes: TokenBytes) -> ChatLogprobs:
    """`top_logprobs` holds as many as were asked for; the chosen token need not be among them."""
    return ChatLogprobs([_chat_token(token, token_bytes) for token in tokens])


class CompletionLogprobsBuilder:
    """Logprobs of one choice of /v1/completions; `text_offset` counts characters of its text."""

    def __init__(self) -> None:
        self._offset = 0

    def build(self, tokens: Sequence[TokenLogprobs | None], first_token: str = "") -> CompletionLogprobs:
        """The part for `tokens`; None is the prompt's first token, which nothing predicts: `first_token`."""
        built = CompletionLogprobs([], [], [], [])
        for token in tokens:
            text = first_token if token is None else token.logprob.decoded_token
            built.tokens.append(text)
            built.token_logprobs.append(None if token is None else _finite(token.logprob))
            built.top_logprobs.append(None if token is None else _top(token))
            built.text_offset.append(self._offset)
            self._offset += len(text)
        return built


def _chat_token(token: TokenLogprobs, token_bytes: TokenBytes) -> ChatTokenLogprob:
    top = [
        ChatTopLogprob(entry.decoded_token, _finite(entry), list(token_bytes(token_id)))
        for token_id, entry in token.top
    ]
    chosen = token.logprob
    return ChatTokenLogprob(chosen.decoded_token, _finite(chosen), list(token_bytes(token.token_id)), top)


def _top(token: TokenLogprobs) -> dict[str, float]:
    """By text, as the API has it: the top tokens and the chosen one."""
    best: dict[str, float] = {}
    for entry in (*(entry for _, entry in token.top), token.logprob):
        best.setdefault(entry.decoded_token, _finite(entry))
    return best


def _finite(entry: Logprob) -> float:
    return max(entry.logprob, LOWEST)
