"""The ahead-of-time check: it compiles what a device would, reads the figures right, and lets nothing by."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from octavo_torch.kernels.ahead_of_time.budget import Allowance, Budget, judge, renewed, stale
from octavo_torch.kernels.ahead_of_time.build import PATIENCE, Failure, FigureCache, build
from octavo_torch.kernels.ahead_of_time.figures import Figures
from octavo_torch.kernels.ahead_of_time.plan import Entry
from octavo_torch.kernels.ahead_of_time.table import page
from octavo_torch.kernels.catalog import CATALOG
from octavo_torch.kernels.targets import TARGETS

CHECK = ["-m", "octavo_torch.kernels.ahead_of_time"]
BUDGETS = Path(__file__).parents[2] / "backends" / "torch" / "budgets"
TRITON = "3.9.0"
FIGURES = Figures(registers=100, spill=0, shared=1024, matrix="wgmma", seconds=1.5)
ENTRY = Entry(TARGETS["sm_90"], "rms_norm", "bfloat16: kernel", "not compiled in these tests")
FAILURE = Failure("CompilationError: no such type")


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in a process where Triton compiles; in this one it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def printed_by(script: str) -> Any:
    """The JSON that a script of this folder prints."""
    ended = python(Path(__file__).with_name(script))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def budget(**changes: Any) -> Budget:
    allowance = dataclasses.replace(Allowance(registers=100, shared=1024, matrix="wgmma"), **changes)
    return Budget(TRITON, {(ENTRY.kernel, ENTRY.name): allowance})


def verdict(outcome: Figures | Failure, of: Budget, triton: str = TRITON) -> str:
    return " ".join(judge(ENTRY, outcome, of, triton))


def test_launches_are_specialised_as_triton_itself_does() -> None:
    agreement = printed_by("jit_agreement.py")
    assert agreement["launches"] > 50
    assert agreement["differences"] == []


@pytest.fixture(scope="module")
def greedy() -> Any:
    return printed_by("greedy.py")


@pytest.mark.parametrize(("arch", "matrix"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("gfx1100", "wmma")])
def test_a_spill_is_seen_where_there_is_one_and_only_there(greedy: Mapping[str, Any], arch: str, matrix: str) -> None:
    modest, spilling = greedy[f"modest on {arch}"], greedy[f"greedy on {arch}"]
    assert modest["spill"] == 0
    assert modest["matrix"] == matrix
    assert 0 < modest["registers"] < 128
    # 64 x 128 sums of one warp are 256 registers a thread, more than there are.
    assert spilling["spill"] > 100
    assert spilling["registers"] >= 255
    # What a step of the loop multiplies, in half precision, goes through shared memory.
    assert spilling["shared"] >= 64 * 32 * 2 + 32 * 128 * 2


def test_a_kernel_that_does_not_compile_says_what_the_compiler_said(greedy: Mapping[str, Any]) -> None:
    assert "no_such_function" in greedy["unfinished"]


@dataclasses.dataclass(frozen=True)
class Crash:
    """In the place of a launch: its compilation ends the process."""

    function: str = "crash"

    def compile(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_compiler_that_crashes_is_a_failure_of_that_kernel(tmp_path: Path) -> None:
    seen: list[str] = []
    wanted: Any = {"first": Crash(), "second": Crash()}
    outcomes = build(wanted, FigureCache(tmp_path), jobs=1, built=seen.append)
    assert seen == ["first", "second"]
    assert outcomes["second"] == Failure(f"the compiler's process ended with -{int(signal.SIGKILL)}")
    assert PATIENCE > 60


def test_figures_of_an_earlier_run_are_not_made_again(tmp_path: Path) -> None:
    cache = FigureCache(tmp_path)
    cache.put("first", FIGURES)
    wanted: Any = {"first": Crash()}
    assert build(wanted, cache, jobs=1, built=lambda _: None) == {"first": FIGURES}
    assert cache.get("second") is None


def test_what_keeps_to_its_budget_is_right() -> None:
    assert verdict(FIGURES, budget()) == ""
    assert verdict(dataclasses.replace(FIGURES, registers=99, shared=0), budget()) == ""


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ({"registers": 101}, "takes 101 of registers, and its budget is 100."),
        ({"shared": 1025}, "takes 1025 of shared, and its budget is 1024."),
        ({"matrix": ""}, "no longer uses the matrix unit's wgmma."),
        ({"spill": 4}, "spills 4 bytes a thread, and the budget gives no reason for it."),
        ({"shared": 227 * 1024 + 1}, "takes 232449 bytes of shared memory, and there are 232448."),
    ],
)
def test_what_takes_more_than_its_budget_is_wrong(taken: dict[str, Any], said: str) -> None:
    assert said in verdict(dataclasses.replace(FIGURES, **taken), budget())


def test_a_spill_with_a_reason_is_right_until_it_grows() -> None:
    explained = budget(spill=8, reason="a table of 256 entries")
    assert verdict(dataclasses.replace(FIGURES, spill=8), explained) == ""
    assert "takes 12 of spill" in verdict(dataclasses.replace(FIGURES, spill=12), explained)


def test_a_spill_within_the_budget_still_wants_its_reason() -> None:
    assert "no reason" in verdict(dataclasses.replace(FIGURES, spill=8), budget(spill=8))


def test_a_launch_without_a_budget_is_wrong() -> None:
    assert "has no budget" in verdict(FIGURES, Budget(TRITON, {}))
    assert "spills" in verdict(dataclasses.replace(FIGURES, spill=4), Budget(TRITON, {}))


def test_what_cannot_compile_says_so_in_its_budget_and_is_held_to_it() -> None:
    assert "does not compile: CompilationError" in verdict(FAILURE, budget())
    unsupported = budget(unsupported="this architecture has no such type")
    assert verdict(FAILURE, unsupported) == ""
    assert "compiles, and the budget says that it cannot" in verdict(FIGURES, unsupported)


def test_figures_of_another_triton_are_compared_only_where_they_mean_the_same() -> None:
    more = dataclasses.replace(FIGURES, registers=255)
    assert verdict(more, budget(), triton="3.6.0") == ""
    assert "spills" in verdict(dataclasses.replace(more, spill=4), budget(), triton="3.6.0")
    assert "and there are" in verdict(dataclasses.replace(more, shared=1 << 20), budget(), triton="3.6.0")


def test_a_budget_of_no_launch_is_found() -> None:
    (line,) = stale([], "sm_90", budget(), ["rms_norm"])
    assert line == "sm_90: rms_norm: bfloat16: kernel: has a budget, and there is no such launch."
    assert not list(stale([ENTRY], "sm_90", budget(), ["rms_norm"]))
    assert not list(stale([], "sm_90", budget(), ["top_k"]))


def test_renewed_budgets_keep_reasons_and_the_kernels_that_were_not_asked_for(tmp_path: Path) -> None:
    other = {("top_k", "float32: kernel"): Allowance(registers=7)}
    before = Budget("3.6.0", {**budget(spill=8, reason="a table").allowances, **other})
    taken = dataclasses.replace(FIGURES, registers=50, spill=4)
    after = renewed([(ENTRY, taken)], before, TRITON, ["rms_norm"])
    assert after.triton == TRITON
    assert after.allowances[ENTRY.kernel, ENTRY.name] == Allowance(50, 4, 1024, "wgmma", "a table")
    assert after.allowances["top_k", "float32: kernel"] == Allowance(registers=7)
    path = tmp_path / "sm_90.toml"
    after.write(path)
    assert Budget.read(path) == after


def test_renewing_does_not_excuse_a_launch_that_fails() -> None:
    after = renewed([(ENTRY, FAILURE)], budget(), TRITON, ["rms_norm"])
    assert "does not compile" in verdict(FAILURE, after)


def test_the_page_shows_the_most_that_launches_of_a_function_take_and_why_they_spill() -> None:
    spilling = dataclasses.replace(FIGURES, registers=90, shared=2048, spill=8)
    other = dataclasses.replace(ENTRY, name="float32: kernel 2")
    explained = {"sm_90": budget(spill=8, reason="A table of 256 entries.")}
    made = page([(ENTRY, spilling), (other, FIGURES)], [TARGETS["sm_90"]], explained, TRITON)
    assert "| rms_norm | kernel | 2 | 100, 2 KB, wgmma, **8 B in 1** |" in made
    assert "sm_90, rms_norm: A table of 256 entries.\n\n- bfloat16: kernel: 8 B" in made


def test_the_page_names_what_an_architecture_cannot_compile() -> None:
    unsupported = {"sm_90": budget(unsupported="It has no such type.")}
    made = page([(ENTRY, FAILURE)], [TARGETS["sm_90"]], unsupported, TRITON)
    assert "| rms_norm | kernel | 1 | cannot |" in made
    assert "sm_90, rms_norm: It has no such type.\n\n- bfloat16: kernel: cannot be compiled" in made


def test_every_launch_has_a_budget_and_every_spill_its_reason() -> None:
    compiled = [arch for arch, target in TARGETS.items() if target.generator != "xpu"]
    assert sorted(path.stem for path in BUDGETS.glob("*.toml")) == sorted(compiled)
    for arch in compiled:
        allowances = Budget.read(BUDGETS / f"{arch}.toml").allowances
        assert {kernel for kernel, _ in allowances} == {kernel.name for kernel in CATALOG}
        assert not [launch for launch, each in allowances.items() if each.spill and len(each.reason) < 20]


@pytest.mark.timeout(900)  # a minute with two processors to itself, and seconds once figures are in the cache
def test_a_representative_share_of_all_launches_keeps_to_the_budgets_on_every_architecture() -> None:
    ended = python(*CHECK, "--quick")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert re.search(rf"\d\d launches of {len(CATALOG)} kernels on 9 architectures, 0 problems", ended.stderr)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_launches_keep_to_the_budgets_on_every_architecture() -> None:
    ended = python(*CHECK)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert re.search(rf"\d{{4}} launches of {len(CATALOG)} kernels on 9 architectures, 0 problems", ended.stderr)


def tuned(folder: Path, generator: str, text: str) -> list[str]:
    """Arguments that give the kernels other parameters."""
    path = folder / "tuning.toml"
    path.write_text(text)
    return ["--tuning", f"{generator}={path}"]


def test_the_check_fails_where_a_kernel_spills(tmp_path: Path) -> None:
    # A warp that holds 128 rows of 128 numbers has 512 of them in each thread.
    greedy = tuned(tmp_path, "cuda", "[[rms_norm]]\nrows = 128\nnum_warps = 1\n")
    ended = python(*CHECK, "--quick", "--kernel", "rms_norm", "--target", "sm_90", *greedy)
    assert ended.returncode == 1
    assert re.search(r"sm_90: rms_norm: .*: _kernel: spills \d{4} bytes a thread, and the budget gives", ended.stderr)


def test_the_check_fails_where_a_kernel_takes_more_shared_memory_than_there_is(tmp_path: Path) -> None:
    deep = tuned(tmp_path, "cuda", "[[lora]]\nblock_in = 256\nnum_stages = 8\n")
    ended = python(*CHECK, "--quick", "--kernel", "lora", "--target", "sm_89", *deep)
    assert ended.returncode == 1
    assert "_shrink_kernel: takes 114688 bytes of shared memory, and there are 101376." in ended.stderr


def test_the_check_fails_where_a_kernel_takes_more_than_its_budget(tmp_path: Path) -> None:
    real = Budget.read(BUDGETS / "sm_90.toml")
    tight = {key: dataclasses.replace(each, registers=each.registers - 1) for key, each in real.allowances.items()}
    Budget(real.triton, tight).write(tmp_path / "sm_90.toml")
    ended = python(*CHECK, "--quick", "--kernel", "rms_norm", "--target", "sm_90", "--budgets", tmp_path)
    assert ended.returncode == 1
    assert re.search(r"sm_90: rms_norm: .*: _kernel: takes \d+ of registers, and its budget is \d+\.", ended.stderr)


def test_the_check_fails_where_a_row_of_a_tuning_table_is_of_no_use(tmp_path: Path) -> None:
    useless = tuned(tmp_path, "cuda", '[[rms_norm]]\narch = ["sm_90"]\nmin_hidden = 1000000\nnum_warps = 8\n')
    ended = python(*CHECK, "--kernel", "rms_norm", "--target", "sm_90", *useless)
    assert ended.returncode == 1
    assert "rms_norm: no specimen reaches row 1 of the tuning table on sm_90." in ended.stderr


def test_the_check_fails_where_a_budget_is_of_no_launch(tmp_path: Path) -> None:
    real = Budget.read(BUDGETS / "sm_90.toml")
    Budget(real.triton, {**real.allowances, ("top_k", "float32: gone"): Allowance(1)}).write(tmp_path / "sm_90.toml")
    ended = python(*CHECK, "--kernel", "top_k", "--target", "sm_90", "--budgets", tmp_path)
    assert ended.returncode == 1
    assert "sm_90: top_k: float32: gone: has a budget, and there is no such launch." in ended.stderr
    assert "1 problems" in ended.stderr


def test_renewing_budgets_makes_the_check_pass(tmp_path: Path) -> None:
    arguments = [*CHECK, "--quick", "--kernel", "rms_norm", "--target", "sm_90", "--budgets", tmp_path]
    assert "has no budget" in python(*arguments).stderr
    assert python(*arguments, "--write-budgets").returncode == 0
    assert python(*arguments).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "sm_75"], "There is no target 'sm_75'; there are sm_80, sm_89,"),
        (["--kernel", "softmax"], "There is no kernel 'softmax'; there are rms_norm,"),
        (["--target", "pvc"], "does not compile for pvc; for"),
        (["--tuning", "cuda=no_such_file.toml"], "The tuning table no_such_file.toml cannot be read"),
    ],
)
def test_what_cannot_be_asked_for_gets_a_sentence(arguments: list[str], said: str) -> None:
    ended = python(*CHECK, *arguments)
    assert ended.returncode == 2
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
