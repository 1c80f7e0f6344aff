"""Each figure that is not what it should be is named; budgets are kept, renewed, and found to be of no use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libtpu", reason="budgets name the version of libtpu, which is not installed")

from topologies.budget import MIB, Budget, judge, renewed, stale
from topologies.build import Compiled, Failure, Outcome, TooLarge
from topologies.cache import FigureCache, compiler
from topologies.chips import CHIPS
from topologies.figures import TILES, TOKENS, WRITE, Expected, Figures
from topologies.models import MODELS
from topologies.page import page
from topologies.steps import DECODE, MIXED, Case

CASE = Case(CHIPS["v5e"], MODELS["1B"], 4, MIXED)
OTHER = replace(CASE, step=DECODE)
KERNELS = ((TILES, 16), (TOKENS, 16), (WRITE, 16))
RIGHT = Figures(
    seconds=30.0,
    kv_tokens=1000,
    arguments=12 << 30,
    outputs=8 << 30,
    aliased=8 << 30,
    temporary=40 * MIB,
    code=2 * MIB,
    kernels=KERNELS,
    all_reduces=32,
    all_gathers=0,
    other_collectives=0,
    copies=(),
)
EXPECTED = Expected(aliased=8 << 30, kernels=KERNELS, all_reduces=32, all_gathers=0)
BUDGET = Budget(compiler(), {CASE.name: 41}, {})


def verdict(budget: Budget = BUDGET, **changes: Any) -> str:
    return " ".join(judge(CASE, Compiled(replace(RIGHT, **changes), EXPECTED), budget))


def said_of(outcome: Outcome, budget: Budget) -> str:
    return " ".join(judge(CASE, outcome, budget))


def test_a_step_with_all_figures_right_passes() -> None:
    assert verdict() == ""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"aliased": 0}, "aliased: 0, and should be 8,589,934,592"),
        ({"all_reduces": 33}, "all reduces: 33, and should be 32"),
        ({"all_gathers": 1}, "all gathers: 1, and should be 0"),
        ({"other_collectives": 1}, "other collectives: 1, and should be 0"),
        ({"copies": ("copy copy.7",)}, "copies: copy copy.7, and should be none"),
        ({"kernels": KERNELS[:2]}, f"and should be 16 {TILES}, 16 {TOKENS}, 16 {WRITE}"),
        ({"temporary": 42 * MIB}, "takes 44,040,192 temporary bytes, and its budget is 42,991,616"),
        ({"arguments": 16 << 30}, "bytes of a chip's memory, and there are 16,911,433,728"),
    ],
)
def test_each_figure_that_misses_is_named(changes: dict[str, Any], complaint: str) -> None:
    assert complaint in verdict(**changes)


def test_a_step_that_does_not_compile_or_fit_fails_with_its_reason() -> None:
    assert "does not compile: vmem" in said_of(Failure("vmem"), BUDGET)
    assert "does not fit: 16 GiB of 15" in said_of(TooLarge("16 GiB of 15"), BUDGET)


def test_what_is_known_not_to_fit_is_no_failure_until_it_fits() -> None:
    large = replace(BUDGET, too_large={CASE.name: "too many parameters"})
    assert said_of(TooLarge("16 GiB of 15"), large) == ""
    assert "the budget says that it does not: too many parameters" in verdict(large)


def test_temporary_bytes_are_judged_under_the_budgets_own_compiler_only() -> None:
    older = replace(BUDGET, compiler="jax 0.1, libtpu 0.1")
    assert verdict(older, temporary=900 * MIB) == ""
    assert verdict(older, aliased=0) != ""


def test_a_step_without_a_budget_fails_and_a_budget_without_a_step_too() -> None:
    assert "has no budget" in verdict(Budget(compiler(), {}, {}))
    assert list(stale([OTHER.name], BUDGET)) == [f"{CASE.name}: has a budget, and there is no such step."]


def test_a_renewed_budget_allows_what_was_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    before = Budget("jax 0.1, libtpu 0.1", {OTHER.name: 7, CASE.name: 1}, {"8B": "16 GB of weights"})
    after = renewed([(CASE, Compiled(RIGHT, EXPECTED))], before)
    assert verdict(after) == ""
    assert after.temporary_mib[OTHER.name] == 7
    assert after.too_large == before.too_large
    after.write(tmp_path / "v5e.toml")
    assert Budget.read(tmp_path / "v5e.toml") == after


def test_figures_of_an_earlier_run_come_back_as_they_were(tmp_path: Path) -> None:
    cache = FigureCache(tmp_path)
    figures = replace(RIGHT, copies=("copy copy.7",))
    cache.put("a", figures)
    assert cache.get("a") == figures
    assert cache.get("b") is None
    next(tmp_path.rglob("a.json")).write_text('{"seconds": 1}')
    assert cache.get("a") is None


def test_the_page_has_a_row_for_each_step_and_the_sentence_of_each_that_does_not_fit() -> None:
    budgets = {"v5e": replace(BUDGET, too_large={OTHER.name: "too many parameters"})}
    written = page([(CASE, Compiled(RIGHT, EXPECTED)), (OTHER, TooLarge("16 GiB of 15"))], budgets)
    assert "| 4 x v5e (v5e:2x2) | 1B | prefills and decodes, 512 tokens | 30 | 12.04 of 15.75 | 8.00" in written
    assert f"- v5e, {OTHER.name} (too many parameters): 16 GiB of 15" in written
