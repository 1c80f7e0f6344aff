"""Programs are let go before a process has no memory mappings left, those used longest ago first."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM
from octavo.backend import DeviceConfig
from octavo.backend.discovery import open_device
from octavo.sampling import SamplingParams
from octavo_xla import program_table
from octavo_xla.program_table import ProgramRoom, ProgramTable

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
MAPS = Path("/proc/self/maps")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the process is full, by its last entry."""
    state = [False]
    monkeypatch.setattr(program_table, "crowded", lambda: state[-1])
    return state


def test_the_half_that_was_used_longest_ago_goes_from_all_tables(full: list[bool]) -> None:
    room = ProgramRoom()
    steps: ProgramTable[str, str] = ProgramTable(room)
    others: ProgramTable[str, str] = ProgramTable(room)
    for name in ("a", "b", "c"):
        steps.keep(name, f"step {name}")
    for name in ("d", "e"):
        others.keep(name, f"operation {name}")
    assert steps.get("a") == "step a"
    full.append(True)
    others.keep("f", "operation f")
    assert [steps.get(name) for name in "abc"] == ["step a", None, None]
    assert [others.get(name) for name in "def"] == [None, "operation e", "operation f"]


def test_an_engine_goes_on_and_its_programs_give_their_mappings_back(
    open_llm: Callable[..., LLM], compiled: Callable[[LLM], list[weakref.ref[Any]]], full: list[bool]
) -> None:
    llm = open_llm()
    first = [result.outputs[0].token_ids for result in llm.generate([[5] * 8], GREEDY)]
    device: Any = llm.engine._runner._device
    held = compiled(llm)
    full.append(True)
    device.ops.rms_norm(device.upload(np.ones((2, 8), np.float32)), device.upload(np.ones(8, np.float32)), 1e-5)
    gc.collect()
    assert any(program() is None for program in held)
    full.append(False)
    assert [result.outputs[0].token_ids for result in llm.generate([[5] * 8], GREEDY)] == first


def test_a_process_is_crowded_from_half_of_its_mappings_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("maps", "a\n" * 51), ("most", "100\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(program_table, "_MAPPINGS", tmp_path / "maps")
    monkeypatch.setattr(program_table, "_MOST_MAPPINGS", tmp_path / "most")
    assert program_table.crowded()
    (tmp_path / "most").write_text("102\n")
    assert not program_table.crowded()
    (tmp_path / "most").unlink()
    assert not program_table.crowded()


@pytest.mark.skipif(not MAPS.exists(), reason="mappings are counted on Linux")
def test_dropping_a_program_frees_its_mappings() -> None:
    """That is what makes letting go of them worth anything."""
    device: Any = open_device(DeviceConfig(backend="xla", options={"cache": "off", "host_devices": "2"})).device

    def mappings() -> int:
        gc.collect()
        return len(MAPS.read_text().splitlines())

    weight = device.upload(np.ones(8, np.float32))
    device.ops.rms_norm(device.upload(np.ones((1, 8), np.float32)), weight, 1e-5)
    before = mappings()
    for rows in range(2, 12):
        device.ops.rms_norm(device.upload(np.ones((rows, 8), np.float32)), weight, 1e-5)
    taken = mappings() - before
    device.ops._programs.clear()
    assert taken > 20
    assert mappings() < before + taken / 4
