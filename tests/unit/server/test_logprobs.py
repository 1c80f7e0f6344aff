"""Logprobs in the shapes of the two APIs."""

from __future__ import annotations

import math

import msgspec

from octavo.outputs import Logprob, TokenLogprobs
from octavo_server.api.logprobs import LOWEST, CompletionLogprobsBuilder, chat_logprobs

WORDS = {0: "é".encode(), 1: b"a", 99: b"\xc3"}  # 99 is half a character


def token(text: str, logprob: float, *top: tuple[str, float]) -> TokenLogprobs:
    entries = tuple((number, Logprob(value, number + 1, word)) for number, (word, value) in enumerate(top))
    return TokenLogprobs(99, Logprob(logprob, 1, text), entries)


def test_chat_logprobs_carry_the_bytes_of_each_token() -> None:
    entry = chat_logprobs([token("\ufffd", -0.5, ("é", -0.5), ("a", -2.0))], WORDS.__getitem__).content[0]
    assert (entry.token, entry.logprob, entry.bytes) == ("\ufffd", -0.5, [0xC3])
    assert [(top.token, top.bytes) for top in entry.top_logprobs] == [("é", [0xC3, 0xA9]), ("a", [97])]


def test_probability_zero_is_a_number_that_json_has() -> None:
    built = chat_logprobs([token("a", -math.inf)], WORDS.__getitem__)
    assert built.content[0].logprob == LOWEST
    assert b"null" not in msgspec.json.encode(built.content)


def test_completion_logprobs_count_characters_across_chunks() -> None:
    builder = CompletionLogprobsBuilder()
    first = builder.build([None, token(" is", -1.0, (" was", -0.5))], first_token="This")
    second = builder.build([token(" a", -0.1)])
    assert first.tokens == ["This", " is"]
    assert first.token_logprobs == [None, -1.0]
    assert first.top_logprobs == [None, {" was": -0.5, " is": -1.0}]
    assert first.text_offset == [0, 4]
    assert second.text_offset == [7]
