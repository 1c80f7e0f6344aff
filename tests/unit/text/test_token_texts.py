"""The text of single tokens is what they add to any text, and tokens for which there is no such text have none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.text import Detokenizer, TokenTexts

CORPUS = ["the fox is in the house", "Köln 🦊 the naïve house"] * 3


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(prefix_space: bool) -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁▁abcdefghijklmnopqrstuvwxyz", "▁the", "▁▁"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix_space else steps)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def words() -> Tokenizer:
    return Tokenizer(models.WordLevel({f"w{number}": number for number in range(50)}, unk_token="w0"))


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"the": 0, "##re": 1, "fox": 2, ",": 3, "[UNK]": 4}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def rewriting() -> Tokenizer:
    """Joins the tokens first and then replaces what may lie across two of them."""
    tokenizer = words()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("1w"), "!")])
    return tokenizer


def stripping_the_end() -> Tokenizer:
    tokenizer = sentencepiece(True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 1)])
    return tokenizer


KNOWN = {
    "byte-level": byte_level(),
    "sentencepiece": sentencepiece(True),
    "without a prefix space": sentencepiece(False),
    "no decoder": words(),
}
OTHERS = {"word pieces": word_pieces(), "rewriting": rewriting(), "stripping the end": stripping_the_end()}
TEXTS = {name: TokenTexts(tokenizer) for name, tokenizer in KNOWN.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_nearly_every_token_of_a_known_kind_has_a_text(name: str) -> None:
    tokenizer, texts = KNOWN[name], TEXTS[name]
    whole = [
        token for token in range(tokenizer.get_vocab_size())
        if "\ufffd" not in tokenizer.decode([token]) and not tokenizer.id_to_token(token).startswith("<")
    ]  # fmt: skip
    assert len(whole) >= 26
    assert all(texts[token] for token in whole)


@pytest.mark.parametrize("name", OTHERS)
def test_no_token_of_another_kind_has_one(name: str) -> None:
    texts = TokenTexts(OTHERS[name])
    assert {texts[token] for token in range(OTHERS[name].get_vocab_size())} == {None}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(KNOWN)), st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.integers(0, 10**6))
def test_a_text_is_what_the_token_adds_to_any_text_that_ends_with_a_whole_character(
    name: str, before: list[int], token: int
) -> None:
    tokenizer, size = KNOWN[name], KNOWN[name].get_vocab_size()
    before, token = [number % size for number in before], token % size
    shown, text = tokenizer.decode(before), TEXTS[name][token]
    if text is not None and shown and not shown.endswith("\ufffd"):
        assert tokenizer.decode([*before, token]) == shown + text


def test_bytes_and_special_tokens_have_no_text() -> None:
    pieces = KNOWN["sentencepiece"]
    for piece in ("<0x41>", "<0xC3>", "</s>"):
        assert TEXTS["sentencepiece"][pieces.token_to_id(piece)] is None
    assert TEXTS["byte-level"][KNOWN["byte-level"].token_to_id("Ã")] is None
    assert TEXTS["byte-level"][10**6] is None  # the model's vocabulary may be larger than the tokenizer's
    shown = TokenTexts(pieces, skip_special_tokens=False)
    assert shown[pieces.token_to_id("</s>")] == "</s>"


class Nothing(TokenTexts):
    """Every token is decoded with its neighbours."""

    def __missing__(self, token_id: int) -> None:
        return None


NUMBERS = st.lists(st.integers(0, 10**6), max_size=24)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(sorted(KNOWN)), NUMBERS, NUMBERS, st.booleans(), st.sampled_from([(), ("e",), ("the f", " ")]))
def test_looking_up_gives_what_decoding_with_the_neighbours_gives(
    name: str, before: list[int], after: list[int], skip: bool, stop: tuple[str, ...]
) -> None:
    tokenizer, size = KNOWN[name], KNOWN[name].get_vocab_size()
    prompt, output = [number % size for number in before], [number % size for number in after]
    looked_up, decoded = (
        Detokenizer(tokenizer, stop, skip_special_tokens=skip, prompt_token_ids=prompt, texts=texts)
        for texts in (None, Nothing(tokenizer, skip_special_tokens=skip))
    )
    for token in output:
        for each in (looked_up, decoded):
            each.append(token, may_stop=token % 3 > 0)
        assert looked_up.take_text() == decoded.take_text()
        assert looked_up.stopped == decoded.stopped
    for each in (looked_up, decoded):
        each.flush()
    assert looked_up.take_text() == decoded.take_text()
    assert looked_up.stopped == decoded.stopped


def test_ordinary_tokens_are_looked_up_and_not_decoded() -> None:
    tokenizer = KNOWN["byte-level"]
    ids = tokenizer.encode("the fox is in the house").ids

    class Counting:
        calls = 0

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def decode(self, *args: object, **options: object) -> str:
            self.calls += 1
            return tokenizer.decode(*args, **options)

    counting = Counting()
    texts = TokenTexts(counting)
    for token in ids:
        texts[token]
    detokenizer = Detokenizer(counting, prompt_token_ids=ids[:2], texts=texts)
    calls = counting.calls
    for token in ids[2:]:
        detokenizer.append(token)
    assert counting.calls == calls
    assert detokenizer.take_text() == tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]
