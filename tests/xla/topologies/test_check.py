"""The command, as CI runs it, and on a kernel that is broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs that are not there, is not installed")

from topologies.budget import Budget, judge
from topologies.build import TooLarge, compile_case
from topologies.cache import FigureCache, compiler
from topologies.chips import CHIPS
from topologies.models import MODELS, ModelShape
from topologies.steps import COPIES, DECODE, Case

from octavo.backend import DType

CHECK = Path(__file__).parents[3] / "backends" / "xla" / "topologies"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK), *arguments], capture_output=True, text=True, check=False)


def test_a_short_form_of_each_step_is_within_its_budget(tmp_path: Path) -> None:
    ended = check("--quick", "--cache", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "6 steps, 0 problems" in ended.stderr


def test_a_kernel_with_too_much_vector_memory_fails_the_check_by_name() -> None:
    ended = check("--quick", "--chip", "v6e", "--break", "vmem")
    assert ended.returncode == 1
    assert "1B, 2 layers, 1 chip: decodes, 64 tokens: does not compile:" in ended.stderr
    assert "vmem" in ended.stderr
    assert "paged_attention_of_tokens" in ended.stderr


def test_a_page_is_never_written_of_a_part_of_the_steps(tmp_path: Path) -> None:
    ended = check("--quick", "--page", str(tmp_path / "tpu.md"))
    assert ended.returncode == 2
    assert "--page is of all steps" in ended.stderr
    assert not (tmp_path / "tpu.md").exists()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kv_dtype", [DType.BFLOAT16, DType.INT8, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2])
def test_blocks_are_copied_in_place_in_every_cache(chip: str, kv_dtype: DType, tmp_path: Path) -> None:
    """Heads of 128 have rows of 256 lanes, of which XLA itself keeps those of eight bits in another order."""
    case = Case(CHIPS[chip], MODELS["8B"].shallow(2), 1, COPIES, kv_dtype)
    allowed = Budget(compiler(), {case.name: 8}, {})
    assert list(judge(case, compile_case(case, FigureCache(tmp_path)), allowed)) == []


def test_a_model_over_the_memory_is_told_in_one_sentence_by_the_device_itself(tmp_path: Path) -> None:
    wide = ModelShape("wide", "nothing", {**MODELS["8B"].config, "num_hidden_layers": 1, "intermediate_size": 786432})
    assert compile_case(Case(CHIPS["v5e"], wide, 1, DECODE), FigureCache(tmp_path)) == TooLarge(
        "The weights alone take 20.04 GiB of the 15.75 GiB that each device has: at least 2 devices "
        "(tensor_parallel_size), or weights of fewer bits, are needed."
    )
