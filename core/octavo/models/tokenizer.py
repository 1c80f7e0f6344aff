"""Text to token ids and back, with what a checkpoint says about its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.models.resolve import FileKind, ModelFiles
from octavo.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import tokenizers

    from octavo.models.chat_template import ChatTemplate


class Tokenizer:
    """A tokenizer of the `tokenizers` library with its checkpoint's chat template and end-of-sequence tokens.

    backend_tokenizer: the library's own object, for incremental decoding.
    eos_token_ids: tokens any of which ends a completion.
    """

    def __init__(
        self,
        backend_tokenizer: tokenizers.Tokenizer,
        eos_token_ids: Iterable[int],
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.backend_tokenizer = backend_tokenizer
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        """Number of tokens the tokenizer knows; the model's vocabulary may be padded beyond it."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be used."""
        return self.chat_template is not None

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token as the vocabulary spells it: no token stands for more."""
        return max(map(len, self.backend_tokenizer.get_vocab(with_added_tokens=True)))

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The text of tokens whose neighbours do not matter; special tokens have none."""
        return TokenTexts(self.backend_tokenizer)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. add_special_tokens: also those the model wants around every prompt, such as BOS.

        Raises InvalidRequestError for text with half of a UTF-16 surrogate pair, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"The text holds half of a surrogate pair at character {error.start}, which is no character."
            ) from None
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become the replacement character."""
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """The text of one token, its leading space included; empty for an id that is no token."""
        piece = self.backend_tokenizer.id_to_token(token_id)
        if piece is None:
            return ""
        text = self.decode([token_id], skip_special_tokens=False)
        # SentencePiece's decoder drops the space before the first word, and a lone token is always first.
        return " " + text if piece.startswith("▁") and not text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, also where they are part of a character; empty for an id that is no token."""
        text = self.token_text(token_id)
        if "\ufffd" not in text:
            return text.encode()
        piece = str(self.backend_tokenizer.id_to_token(token_id))
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        alphabet = _byte_level_alphabet()
        return bytes(alphabet[sign] for sign in piece) if all(sign in alphabet for sign in piece) else text.encode()

    def render_chat_template(
        self, messages: Sequence[Mapping[str, Any]], /, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text for chat messages. Raises InvalidRequestError: no template, or it refuses the messages."""
        if self.chat_template is None:
            raise InvalidRequestError(
                "The model has no chat template; send a plain prompt instead of messages.",
                param="messages",
                code="no_chat_template",
            )
        return self.chat_template.render(messages, add_generation_prompt, variables)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], /, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The prompt's token ids for chat messages; see `render_chat_template`."""
        text = self.render_chat_template(messages, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)  # the template writes them itself


_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece spells a byte


def _byte_level_alphabet() -> dict[str, int]:
    """How byte-level vocabularies spell bytes (GPT-2): printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model.

    Everything is read from the model's own files with the `tokenizers` library; transformers, which takes
    seconds to import, is only needed for directories without a tokenizer.json.
    Raises ModelError for a tokenizer that is missing, damaged or of a kind that is not supported.
    """
    if files.kind is FileKind.GGUF:
        from octavo.models.tokenizer_gguf import gguf_tokenizer

        return gguf_tokenizer(files.path)
    from octavo.models.tokenizer_hf import directory_tokenizer

    return directory_tokenizer(files.path)


def surround(tokenizer: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Have the backend's tokenizer put these tokens before and after every text, None for nothing."""
    from tokenizers.processors import TemplateProcessing

    single = [*filter(None, [bos]), "$A", *filter(None, [eos])]
    special = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token is not None]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=[*single, "$B:1"], special_tokens=special)
