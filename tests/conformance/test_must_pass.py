"""The must-pass lists are the suite: a case can be neither added nor taken away without them."""

from __future__ import annotations

from importlib.resources import files

import pytest

from octavo_conformance import SUITE_VERSION, must_pass
from octavo_conformance.case import Level
from octavo_conformance.must_pass.__main__ import text
from octavo_conformance.suite import cases, select


@pytest.mark.parametrize("level", Level)
def test_the_list_of_a_level_is_that_of_its_cases(level: Level) -> None:
    path = files("octavo_conformance.must_pass") / SUITE_VERSION / f"{level.value}.txt"
    assert path.read_text() == text(level, cases()), "make conformance-lists writes it again"


def test_a_selection_means_the_same_to_the_suite_and_to_the_lists() -> None:
    for levels, pattern, quick in (
        ((), "", False),
        ((Level.OPS,), "", True),
        ((), "ops/linear/* step/*", False),
        ((Level.STEP, Level.CONTRACT), "*float32*", True),
    ):
        chosen = [case.id for case in select(levels, pattern, quick)]
        assert chosen
        assert must_pass.ids(levels, pattern, quick) == chosen


def test_every_level_has_a_quick_case() -> None:
    assert {case.level for case in cases() if case.quick} == set(Level)


def test_a_version_that_nobody_has_is_refused() -> None:
    with pytest.raises(must_pass.UnknownSuiteError, match=r"no must-pass lists of suite version '9\.9' here"):
        must_pass.ids(version="9.9")
