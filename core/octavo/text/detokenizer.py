"""Incremental detokenization of one sequence.

A token's text depends on its neighbours: a character's bytes may be spread over tokens, and some decoders
drop the space at the start. So a short window of tokens is decoded at each step, a context whose text is
known followed by the new tokens, and what goes beyond the context's text is new. Its whole characters are
shown at once; an unfinished one at its end waits, and its tokens stay new until it is whole. (The method is
the one of Hugging Face TGI and vLLM; `tokenizers`' own DecodeStream raises where a prefix decodes differently
in a longer sequence, and cannot give out an unfinished end.)

Most tokens need no window: see `TokenTexts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.text.stop import StopChecker
from octavo.text.token_texts import REPLACEMENT, TokenTexts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A character has at most 4 bytes. A longer run that completes none is not text; the bound keeps a step's cost
# constant.
_LONGEST_WAIT = 32
_CONTEXT = 6  # prompt tokens that come before the first output token


class Detokenizer:
    """Text of one sequence, token by token, cut at the first stop string.

    tokenizer: a `tokenizers.Tokenizer`. stop: strings that end the text and are not part of it.
    prompt_token_ids: what came before, so that the first token keeps its leading space; without it the text
    is that of the output decoded on its own. texts: of single tokens, shared by all sequences of a tokenizer.
    """

    __slots__ = (
        "_checker",
        "_context",
        "_context_text",
        "_follows_text",
        "_may_stop",
        "_plain",
        "_pushed",
        "_ready",
        "_skip_special_tokens",
        "_texts",
        "_tokenizer",
        "_waiting",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
        texts: TokenTexts | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._texts = TokenTexts(tokenizer, skip_special_tokens=skip_special_tokens) if texts is None else texts
        self._checker = StopChecker(stop)
        self._plain = not stop
        self._may_stop = True
        self._context: list[int] = []
        self._context_text: str | None = ""  # None: not decoded yet
        self._follows_text = False  # whether there is text before the next token
        self._waiting: list[int] = []
        self._pushed = 0  # characters of the waiting tokens' text that have gone on already
        self._ready = ""
        if tail := list(prompt_token_ids[-_CONTEXT:]):
            text = self._decode(tail)
            if not text.endswith(REPLACEMENT):  # an unfinished character is no boundary to start from
                self._context, self._context_text, self._follows_text = tail, text, bool(text)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None; `flush` may be what completes it."""
        return self._checker.matched

    def append(self, token_id: int, *, may_stop: bool = True) -> None:
        """Take in the next token.

        may_stop: False where a stop string that this token completes is ordinary text, as before min_tokens.
        Once stopped, tokens are ignored.
        """
        if self._checker.matched is not None:
            return
        self._may_stop = may_stop
        if self._follows_text and not self._waiting and (text := self._texts[token_id]) is not None:
            self._ready += text if self._plain else self._checker.push(text, active=may_stop)
            self._context, self._context_text = [token_id], None
            return
        self._waiting.append(token_id)
        new = self._new_text()
        if not new:
            if len(self._waiting) > _LONGEST_WAIT:  # special tokens without end: they add nothing to the window
                self._waiting.clear()
            return
        if new.endswith(REPLACEMENT) and len(self._waiting) <= _LONGEST_WAIT:
            self._push(new.rstrip(REPLACEMENT))
        else:
            self._push(new)
            self._advance()

    def take_text(self) -> str:
        """The text that became safe to show since the last call: whole characters, no part of a stop."""
        text, self._ready = self._ready, ""
        return text

    def flush(self) -> None:
        """The sequence has ended: what was held back becomes ready too, or is found to complete a stop string."""
        if self._waiting and self.stopped is None:
            self._push(self._new_text())
            self._advance()
        self._ready += self._checker.flush()

    def _push(self, new: str) -> None:
        """Hand on the waiting tokens' text beyond what went on before."""
        if len(new) > self._pushed:
            self._ready += self._checker.push(new[self._pushed :], active=self._may_stop)
            self._pushed = len(new)
            self._follows_text = True

    def _new_text(self) -> str:
        """The text of the waiting tokens."""
        if self._context_text is None:
            self._context_text = self._decode(self._context)
        return self._decode(self._context + self._waiting)[len(self._context_text) :]

    def _advance(self) -> None:
        """The waiting tokens become the context."""
        self._context, self._waiting, self._pushed = self._waiting, [], 0
        self._context_text = None

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens))
