"""Streaming must give the text of decoding everything at once, on each kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.models.demo import demo_directory
from octavo.models.tokenizer_gguf import gguf_tokenizer
from octavo.text import Detokenizer

TEXTS = [
    "The capital of France is Paris.",
    "Grüße aus Köln, naïve café — “quotes” … ½",
    "日本語のテキスト、한국어 텍스트, नमस्ते, العربية",
    "emoji: 👩‍👩‍👧‍👦 🇩🇪 🤦🏽‍♂️ 🦊🦊🦊 and text after",
    "code:\n\tdef f(x):\n        return x  # done\r\n",
    "  two spaces lead,   three within, and one trails ",
    "a real replacement character: \ufffd!",
]


def byte_level() -> Tokenizer:
    """GPT-2's kind: a character's bytes may be spread over tokens; trained little, so that they are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:1] * 3, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama 2's kind: the first space is dropped, and unknown characters are spelled in byte tokens."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz",
        "▁the",
        "▁is",
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "the"), ("▁", "is")]
    vocab |= {"the": len(vocab), "is": len(vocab) + 1}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


def stream(tokenizer: Tokenizer, ids: list[int], **kwargs) -> list[str]:
    """The pieces of text, one for each token and one for the end."""
    detokenizer = Detokenizer(tokenizer, **kwargs)
    pieces = []
    for token in ids:
        detokenizer.append(token)
        pieces.append(detokenizer.take_text())
    detokenizer.flush()
    return [*pieces, detokenizer.take_text()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_streaming_gives_the_text_of_decoding_at_once(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    # Whole characters only: the pieces never show a replacement character that the text does not have.
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    if len(ids) > 8:
        assert sum(map(bool, pieces)) > 3


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, TOKENIZERS["byte-level"].get_vocab_size() - 1), max_size=60), st.booleans())
def test_streaming_random_bytes_gives_the_text_of_decoding_at_once(ids: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip_special_tokens=skip)) == expected


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    path = demo_directory() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("the demo model has not been fetched")
    return gguf_tokenizer(path).backend_tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_the_demo_models_tokens_gives_the_text_of_decoding_at_once(demo: Tokenizer, text: str) -> None:
    pieces = stream(demo, demo.encode(text).ids)
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 3


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.one_of(st.integers(0, 49_151), st.integers(0, 300)), max_size=60))
def test_streaming_random_tokens_of_the_demo_model_gives_the_text_of_decoding_at_once(
    demo: Tokenizer, ids: list[int]
) -> None:
    assert "".join(stream(demo, ids)) == demo.decode(ids)


def test_nothing_of_a_character_is_shown_before_all_its_bytes() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a🦊b").ids
    assert len(ids) == 6
    assert stream(tokenizer, ids) == ["a", "", "", "", "🦊", "b", ""]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a🦊").ids[:-1]
    assert stream(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_skipped_unless_asked_for(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    special = next(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)
    ids = [special, *tokenizer.encode("the end").ids, *[special] * 100, *tokenizer.encode(" is").ids]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
    shown = "".join(stream(tokenizer, ids, skip_special_tokens=False))
    assert shown.count(tokenizer.id_to_token(special)) == 101


def test_the_first_token_keeps_its_space_after_a_prompt() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode("the the").ids
    half = len(ids) // 2
    assert "".join(stream(tokenizer, ids[half:])) == "the"
    assert "".join(stream(tokenizer, ids[half:], prompt_token_ids=ids[:half])) == " the"


def test_a_long_run_of_invalid_bytes_is_let_go_and_text_goes_on() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    byte = tokenizer.token_to_id("Ã")
    tail = tokenizer.encode("ok then").ids
    pieces = stream(tokenizer, [byte] * 200 + tail)
    assert any(pieces[:200])
    assert "".join(pieces).endswith("ok then")


def test_text_ends_before_a_stop_string_spread_over_tokens() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    detokenizer = Detokenizer(tokenizer, ("🦊🦊",))
    shown = ""
    for token in tokenizer.encode("one 🦊, two 🦊🦊 three").ids:
        detokenizer.append(token)
        shown += detokenizer.take_text()
        assert "🦊🦊" not in shown
    detokenizer.flush()
    assert shown + detokenizer.take_text() == "one 🦊, two "
    assert detokenizer.stopped == "🦊🦊"


def test_held_text_is_shown_when_the_end_comes_without_a_stop_string() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    pieces = stream(tokenizer, tokenizer.encode("wait for <en").ids, stop=("<end>",))
    assert "".join(pieces) == "wait for <en"
    assert pieces[-1] == "<en"


def test_a_stop_string_before_it_may_stop_is_ordinary_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    detokenizer = Detokenizer(tokenizer, ("x",))
    for index, token in enumerate(tokenizer.encode("axbxc").ids):
        detokenizer.append(token, may_stop=index >= 2)
    detokenizer.flush()
    assert detokenizer.take_text() == "axb"


def spread() -> tuple[Tokenizer, int, list[int]]:
    """Tokens of which one ends a word and begins a character: its id, and those that finish a fox."""
    tokenizer = byte_level()
    byte = tokenizer.encode("🦊").ids
    joined = "end" + tokenizer.id_to_token(byte[0])
    tokenizer.add_tokens([AddedToken(joined, normalized=False)])
    return tokenizer, tokenizer.token_to_id(joined), byte[1:]


def test_whole_characters_are_shown_while_the_one_after_them_is_unfinished() -> None:
    tokenizer, joined, rest = spread()
    expected = tokenizer.decode([joined, *rest])
    assert expected == "end🦊"
    assert stream(tokenizer, [joined, *rest]) == ["end", *[""] * (len(rest) - 1), "🦊", ""]
    assert stream(tokenizer, [joined]) == ["end", "\ufffd"]


def test_a_stop_string_is_found_with_its_token_though_a_character_begins_in_it() -> None:
    tokenizer, joined, _ = spread()
    detokenizer = Detokenizer(tokenizer, ("end",))
    detokenizer.append(joined)
    assert detokenizer.stopped == "end"
    detokenizer.flush()
    assert detokenizer.take_text() == ""


def test_a_stop_string_before_an_unfinished_character_is_ordinary_text_where_it_may_not_stop() -> None:
    tokenizer, joined, rest = spread()
    detokenizer = Detokenizer(tokenizer, ("end",))
    detokenizer.append(joined, may_stop=False)
    for token in rest:
        detokenizer.append(token)
    detokenizer.flush()
    assert detokenizer.take_text() == "end🦊"
    assert detokenizer.stopped is None


def test_a_stop_string_that_only_the_end_completes_is_told() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    detokenizer = Detokenizer(tokenizer, ("a\ufffd",))
    for token in tokenizer.encode("xa🦊").ids[:-1]:
        detokenizer.append(token)
    assert detokenizer.stopped is None
    detokenizer.flush()
    assert detokenizer.stopped == "a\ufffd"
    assert detokenizer.take_text() == "x"
