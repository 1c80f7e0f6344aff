from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text import StopChecker


def stream(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    checker = StopChecker(stop)
    text = "".join(checker.push(piece) for piece in pieces)
    return text + checker.flush(), checker.matched


def first_match(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Character by character: the first end of a stop string, and there the longest."""
    for end in range(1, len(text) + 1):
        for candidate in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(candidate):
                return text[: end - len(candidate)], candidate
    return text, None


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_the_match_does_not_depend_on_how_the_text_is_cut(pieces: list[str], stop: list[str]) -> None:
    assert stream(pieces, stop) == first_match("".join(pieces), stop)


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_no_more_is_held_back_than_may_become_a_stop_string(pieces: list[str], stop: list[str]) -> None:
    checker = StopChecker(stop)
    shown = arrived = ""
    for piece in pieces:
        arrived += piece
        shown += checker.push(piece)
        if checker.matched is not None:
            return
        held = arrived[len(shown) :]
        assert arrived.startswith(shown)
        assert held == "" or any(len(each) > len(held) and each.startswith(held) for each in stop)


def test_a_stop_string_that_straddles_pieces_is_never_shown() -> None:
    checker = StopChecker(["</answer>"])
    assert checker.push("42</ans") == "42"
    assert checker.push("!") == "</ans!"
    assert checker.push("</answer") == ""
    assert checker.push("> more") == ""
    assert checker.matched == "</answer>"
    assert checker.push("more") == ""
    assert checker.flush() == ""


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcd", ["bcd", "c"], ("ab", "c")),
        ("abcd", ["c", "bc"], ("a", "bc")),
        ("aab", ["ab"], ("a", "ab")),
        ("abab", ["abab"], ("", "abab")),
        ("xy", ["z"], ("xy", None)),
    ],
)
def test_the_stop_string_complete_first_wins(text: str, stop: list[str], expected: tuple[str, str | None]) -> None:
    assert stream([text], stop) == expected
    assert stream(list(text), stop) == expected


def test_a_stop_string_complete_while_inactive_is_ordinary_text() -> None:
    checker = StopChecker(["end"])
    assert checker.push("the end, ", active=False) == "the end, "
    assert checker.push("e", active=False) == ""
    assert checker.push("nd") == ""  # complete only now, though it began before
    assert checker.matched == "end"
