"""Compiled steps: few programs, a donated cache, one transfer in and one out; what is kept on disk is read again."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo_conformance.oracles.models import ModelSpec, tiny_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
Open = Callable[..., LLM]


def _device(llm: LLM) -> Any:
    return llm.engine._runner._device


def test_longer_contexts_and_wider_tables_compile_nothing(open_llm: Open) -> None:
    llm = open_llm(warm_up_seconds=600)
    before = _device(llm).compilations.count
    for length in (1, 40, 130, 300):  # chunks of 64, then decodes over 1 to 20 blocks
        llm.generate([[5] * length, [7] * (length // 2 + 1)], GREEDY)
    assert _device(llm).compilations.count == before
    # 8 sequences: one size of decodes and four of prefills with 8 rows each, for each of the warm-up's three samplers;
    # and a copy of a block.
    assert before == 3 * (1 + 4) + 1


def test_the_cache_is_written_in_place(open_llm: Open) -> None:
    llm = open_llm()
    llm.generate([[1, 2, 3]], GREEDY)
    runner = llm.engine._runner
    before = [layer.data for layer in runner._kv]
    pointers = [data.unsafe_buffer_pointer() for data in before]
    llm.generate([[4, 5, 6]], GREEDY)
    assert all(data.is_deleted() for data in before)
    assert [layer.data.unsafe_buffer_pointer() for layer in runner._kv] == pointers


def test_a_step_is_one_transfer_each_way(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = open_llm()
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=5)  # five arrays come back
    llm.generate([[1, 2, 3]], params)
    mesh, downloads = _device(llm).mesh, _device(llm)._downloads
    sent: list[np.ndarray] = []
    words: list[_Words] = []
    upload, begin, receive = mesh.upload, downloads.begin, downloads.receive

    def begin_watched(arrays: Any, packed: Any, packing: Any) -> None:
        words.append(_Words(packed))
        begin(arrays, words[-1], packing)

    def receive_deleted(array: Any) -> np.ndarray:
        array.delete()  # by itself it can be fetched no more
        return receive(array)

    monkeypatch.setattr(mesh, "upload", lambda host: sent.append(host) or upload(host))
    monkeypatch.setattr(downloads, "begin", begin_watched)
    monkeypatch.setattr(downloads, "receive", receive_deleted)
    steps = llm.engine.stats().steps
    with jax.transfer_guard("disallow"):  # explicit transfers only
        llm.generate([[4, 5, 6]], params)
    steps = llm.engine.stats().steps - steps
    assert len(sent) == len(words) == steps > 0
    assert {(each.begun, each.fetched) for each in words} == {(1, 1)}


class _Words:
    """The packed outputs of a step, on the device; how often their transfer was begun, and how often waited for."""

    def __init__(self, words: Any) -> None:
        self._words, self.begun, self.fetched = words, 0, 0

    def copy_to_host_async(self) -> None:
        self.begun += 1
        self._words.copy_to_host_async()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.fetched += 1
        return np.array(self._words, dtype)


def test_the_log_tells_programs_apart(open_llm: Open, caplog: pytest.LogCaptureFixture) -> None:
    llm = open_llm()
    with caplog.at_level(logging.INFO, "octavo_xla"):
        llm.generate([[1, 2, 3]], GREEDY)
        llm.generate([[1, 2, 3]], SamplingParams(temperature=1.0, top_p=0.9, seed=1, max_tokens=2, ignore_eos=True))
        llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, logprobs=3, max_tokens=2, ignore_eos=True))
    names = [line.split("(")[1].split(")")[0] for line in caplog.messages if line.startswith("Program ")]
    assert len(names) == len(set(names)) == _device(llm).compilations.count == 6
    assert "8 tokens, 8 rows, decodes, random, truncation nucleus, tables of 8 x 128" in names


def test_programs_of_an_earlier_process_are_read_and_not_compiled(tmp_path: Path) -> None:
    first, second = _generate(tmp_path), _generate(tmp_path)
    assert first["tokens"] == second["tokens"]
    assert (first["read"], second["read"]) == (0, second["count"])
    assert first["count"] == second["count"] > 0


def test_programs_that_cannot_be_read_are_replaced_with_a_sentence(tmp_path: Path) -> None:
    first = _generate(tmp_path)
    for entry in tmp_path.rglob("*-cache"):
        entry.write_bytes(b"not a program")
    broken, healed = _generate(tmp_path), _generate(tmp_path)
    assert broken["tokens"] == first["tokens"]
    assert broken["read"] == 0
    assert broken["log"].count("could not be read and is compiled anew") == broken["count"]
    assert "Traceback" not in broken["log"]
    assert healed["read"] == healed["count"]


_PROGRAM = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1], backend="xla", dtype="float32", max_model_len=64, kv_cache_memory="1MiB", warm_up_seconds=0,
          max_num_seqs=8, backend_options={"cache": sys.argv[2]})
greedy = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
tokens = llm.generate([[1, 2, 3]], greedy)[0].outputs[0].token_ids
done = llm.engine._runner._device.compilations
print(json.dumps({"tokens": list(tokens), "count": done.count, "read": done.read}))
"""


def _generate(cache: Path) -> dict[str, Any]:
    """A generation in a process of its own."""
    command = [sys.executable, "-c", _PROGRAM, str(tiny_model(ModelSpec("llama", "tied")).directory), str(cache)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return {**json.loads(ended.stdout.splitlines()[-1]), "log": ended.stderr}


def test_downloads_are_the_callers_own(open_llm: Open) -> None:
    device = _device(open_llm())
    array = device.upload(np.arange(4, dtype=np.int32))
    host = device.download(array)
    host[:] = 0
    assert device.download(array).tolist() == [0, 1, 2, 3]
