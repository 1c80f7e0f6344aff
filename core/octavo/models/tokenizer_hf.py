"""The tokenizer of a Hugging Face directory: tokenizer.json and the small files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import ModelError
from octavo.models.chat_template import ChatTemplate
from octavo.models.checkpoint.safetensors import read_json
from octavo.models.tokenizer import Tokenizer, surround

if TYPE_CHECKING:
    import tokenizers

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def directory_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a directory; see `load_tokenizer`."""
    config = _optional_json(directory / "tokenizer_config.json")
    backend = _backend(directory)
    special = _special_tokens(directory, config)
    _add_tokens(backend, config, special)
    # As transformers has it: where the config says whether to add BOS or EOS, that replaces what
    # tokenizer.json does.
    if "add_bos_token" in config or "add_eos_token" in config:
        surround(
            backend,
            bos=special.get("bos_token") if config.get("add_bos_token") else None,
            eos=special.get("eos_token") if config.get("add_eos_token") else None,
        )
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, _eos_token_ids(directory, backend, special), _chat_template(directory, config, special))


def _backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return _converted(directory)
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}.") from None


def _converted(directory: Path) -> tokenizers.Tokenizer:
    """From an older tokenizer format, by transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ModelError(
            f"{directory} has no tokenizer.json; to convert its tokenizer, install transformers and sentencepiece."
        ) from None
    try:
        converted = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        backend: tokenizers.Tokenizer = converted.backend_tokenizer
        return backend
    except Exception as error:  # missing files, code of its own, no fast tokenizer: the library raises all kinds
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"{directory} has no tokenizer.json, and its tokenizer cannot be converted: {reason}."
        ) from None


def _special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens, as text."""
    named = _optional_json(directory / "special_tokens_map.json") | dict(config)
    tokens = {}
    for name in _SPECIAL:
        token = named.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json knows of."""
    import tokenizers

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder") or {}
    for _, token in sorted(declared.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            flags = {
                name: bool(token.get(name, False))
                for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            backend.add_tokens([tokenizers.AddedToken(token["content"], **flags)])
            known.add(token["content"])
    backend.add_special_tokens([token for token in special.values() if token not in known])


def _eos_token_ids(directory: Path, backend: tokenizers.Tokenizer, special: Mapping[str, str]) -> set[int]:
    """What ends a completion: the generation config's ids (or the model config's), and the tokenizer's EOS."""
    ids = _optional_json(directory / "generation_config.json").get("eos_token_id")
    if ids is None:
        ids = _optional_json(directory / "config.json").get("eos_token_id")
    found = set(ids) if isinstance(ids, list) else {ids}
    if "eos_token" in special:
        found.add(backend.token_to_id(special["eos_token"]))
    return {token_id for token_id in found if isinstance(token_id, int)}


def _chat_template(directory: Path, config: Mapping[str, Any], special: Mapping[str, str]) -> ChatTemplate | None:
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else None
    source = (
        source or _optional_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    )
    if isinstance(source, list):  # several templates, each with a name
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    return ChatTemplate(source, special) if source else None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
