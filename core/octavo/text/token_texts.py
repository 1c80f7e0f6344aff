"""The text of single tokens, for those whose text does not depend on their neighbours.

In the two kinds of vocabularies that language models use nearly all tokens are of this sort: in a byte-level one those
of whole characters, in SentencePiece's all but the bytes. Their text is looked up, and costs a tenth of decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""What unfinished and invalid bytes decode to."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenTexts(dict[int, str | None]):
    """Token id -> the text that the token adds after any text that ends with a whole character.

    None where that depends on what stands around it, and where it adds nothing. Filled as tokens are asked for. A
    sequence's first token is another matter: some decoders drop a space there.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._before = self._ordinary() if _is_token_by_token(tokenizer) else None

    def __missing__(self, token_id: int) -> str | None:
        text = self[token_id] = None if self._before is None else self._after(token_id, self._before)
        return text

    def _after(self, token_id: int, before: int) -> str | None:
        if self._is_byte(token_id):
            return None
        text = self._decode([before, token_id])[len(self._decode([before])) :]
        return None if not text or REPLACEMENT in text else text

    def _ordinary(self) -> int | None:
        """A token that has text wherever it stands, to decode others after."""
        for token_id in range(self._tokenizer.get_vocab_size()):
            if self._decode([token_id]).isalnum() and not self._is_byte(token_id):
                return token_id
        return None

    def _is_byte(self, token_id: int) -> bool:
        return _BYTE_PIECE.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens))


def _is_token_by_token(tokenizer: Tokenizer) -> bool:
    """Whether the decoder is known to treat each token by itself, but for bytes and for where the text begins."""
    if tokenizer.decoder is None:
        return True  # tokens with a space between them
    decoder = json.loads(tokenizer.decoder.__getstate__())  # as pickle gets it: nothing else tells its parts
    if decoder["type"] == "ByteLevel":
        return True
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else []
    kinds = [step["type"] for step in steps]
    if "Fuse" not in kinds:
        return False
    fuse = kinds.index("Fuse")
    single, joined = kinds[:fuse], steps[fuse + 1 :]
    return {*single} <= {"Replace", "ByteFallback"} and all(map(_strips_start, joined))


def _strips_start(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Strip" and step["stop"] == 0)
