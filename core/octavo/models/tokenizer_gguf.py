"""The tokenizer of a GGUF file, built from its metadata.

A GGUF carries the vocabulary, the merges and the name of a way to split text before merging; the rules behind
that name are llama.cpp's, and the table below gives them as the model's original tokenizer has them. Built
directly because transformers' conversion takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import BPE

from octavo.errors import ModelError
from octavo.models.chat_template import ChatTemplate
from octavo.models.checkpoint.gguf_file import read_gguf
from octavo.models.tokenizer import Tokenizer, surround


class _TokenType(IntEnum):
    """ggml's kinds of tokens, as far as they matter here."""

    CONTROL = 3
    USER_DEFINED = 4


@dataclass(frozen=True, slots=True)
class _Split:
    """How a byte-level vocabulary splits text before merging.

    pattern: a regular expression, or None for GPT-2's. digits: each digit by itself first. nfc: normalise to
        NFC.
    whole_words: a word that is a token is taken as it is, merges or not. bos: BOS goes first where the file
        is silent.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = _Split()
_SMOLLM = _Split(digits=True)
_LLAMA3 = _Split(
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
    whole_words=True,
    bos=True,
)
_QWEN2 = _Split(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST, nfc=True)
_TEKKEN = _Split(
    r"[^\r\n\p{L}\p{N}]?" + f"{_UPPER}*{_LOWER}+" + r"|[^\r\n\p{L}\p{N}]?" + f"{_UPPER}+{_LOWER}*"
    r"|\p{N}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*"),
    whole_words=True,
    bos=True,
)
_SPLITS: Mapping[str, _Split] = MappingProxyType(
    {"default": _GPT2, "gpt-2": _GPT2, "phi-2": _GPT2, "olmo": _GPT2, "mpt": _GPT2}
    | dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SMOLLM)
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe"), _LLAMA3)
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2)
    | {"tekken": _TEKKEN}
)


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a .gguf file; see `load_tokenizer`."""
    metadata = {key.removeprefix("tokenizer.ggml."): value for key, value in read_gguf(path).metadata.items()}
    tokens: Sequence[str] = metadata.get("tokens") or ()
    if not tokens:
        raise ModelError(f"{path} carries no tokenizer.")
    adds_bos = False
    match metadata.get("model"):
        case "gpt2":
            name = metadata.get("pre", "default")
            if name not in _SPLITS:
                raise ModelError(
                    f"{path} splits text as {name!r}, which is not supported; supported are {', '.join(_SPLITS)}."
                )
            backend, adds_bos = _byte_level(metadata, tokens, _SPLITS[name]), _SPLITS[name].bos
        case "llama":
            backend, adds_bos = _sentencepiece(metadata, tokens), True
        case other:
            raise ModelError(
                f"{path} has a tokenizer of the kind {other!r}, which is not supported; supported are gpt2 and llama."
            )
    special = _special_tokens(metadata, tokens)
    _add_tokens(backend, metadata, tokens, special)
    surround(
        backend,
        bos=special.get("bos_token") if metadata.get("add_bos_token", adds_bos) else None,
        eos=special.get("eos_token") if metadata.get("add_eos_token", False) else None,
    )
    ends = (metadata.get(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id"))
    eos = [token_id for token_id in ends if token_id is not None]
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(backend, eos, ChatTemplate(template, special) if template else None)


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], split: _Split) -> BackendTokenizer:
    """Byte-pair encoding of UTF-8 bytes (GPT-2, Radford et al. 2019)."""
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in metadata.get("merges", ()))]
    backend = BackendTokenizer(BPE(_vocabulary(tokens), merges, ignore_merges=split.whole_words))
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> BackendTokenizer:
    """SentencePiece's byte-pair encoding (Kudo and Richardson 2018): spaces are letters, unknown letters are bytes."""
    vocabulary = _vocabulary(tokens)
    stored = metadata.get("merges")
    if stored:
        merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in stored)]
    else:
        merges = _merges(tokens, metadata.get("scores") or [0.0] * len(tokens), vocabulary)
    unknown = tokens[metadata.get("unknown_token_id", 0)]
    backend = BackendTokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(metadata.get("add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first" if prefix else "never", split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _merges(tokens: Sequence[str], scores: Sequence[float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: every split of a token into two tokens, best score first."""
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ranked += [(score, left, right) for left, right in pairs]
    ranked.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in ranked]


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"{key}_token_id") for name, key in keys.items()}
    return {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}


def _add_tokens(
    backend: BackendTokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, str]
) -> None:
    """Tokens that are matched whole, wherever they stand; the special ones can be left out of decoded text."""
    types = metadata.get("token_type") or [0] * len(tokens)
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _TokenType.CONTROL]
    control += [token for token in special.values() if token not in control]
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == _TokenType.USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in whole])
