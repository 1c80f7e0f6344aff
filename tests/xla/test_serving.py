"""The whole way with a real model: the tokens of the cpu backend, the same server, one line of configuration apart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from octavo import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Water boils at"]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True),
]


def test_the_demo_model_gives_the_tokens_of_the_cpu_backend(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = []
    for backend, options in (("cpu", {}), ("xla", {"cache": str(_cache(tmp_path_factory))})):
        llm = LLM("demo", backend=backend, dtype="float32", max_model_len=512, max_num_seqs=8, warm_up_seconds=0,
                  max_num_batched_tokens=64, backend_options=options)  # fmt: skip
        results.append([each.outputs[0].token_ids for each in llm.generate(PROMPTS, PARAMS)])
        llm.close()
    assert results[0] == results[1]


def test_one_line_of_the_configuration_serves_it_and_the_real_client_is_answered(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "octavo.toml").write_text('model = "demo"\nmax_model_len = 512\nport = 0\nbackend = "xla"\n')
    log = tmp_path / "log"
    environment = {**os.environ, "XDG_CACHE_HOME": str(_cache(tmp_path_factory)), "OCTAVO_WARM_UP_SECONDS": "1"}
    environment["OCTAVO_MAX_NUM_SEQS"], environment["OCTAVO_MAX_NUM_BATCHED_TOKENS"] = "8", "64"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-m", "octavo_server", "serve"], cwd=tmp_path, stderr=stderr, env=environment
        )
    try:
        url = _url(server, log)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=240.0)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model="demo", temperature=0, messages=question)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert re.search(
            r"Program \d+ \(\d+ tokens, \d+ rows, decodes, ([\w ]+, )*tables of \d+ x \d+\) (compiled|read)",
            log.read_text(),
        )
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_an_interrupt_while_it_compiles_ends_generate_without_a_crash(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ["--backend", "xla", "--backend-options", "cache=off", "--prompt", "One, two,"]
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "octavo_server", "generate", "demo", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    while "loading weights" not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    time.sleep(5.0)  # somewhere in the first compilation: wherever it is, this is how it ends
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130


def _url(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        if found := re.search(r"Ready: (\S+)/v1", log.read_text(errors="replace")):
            return found.group(1)
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _cache(factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of a session: what one of them compiled, the next reads."""
    return factory.getbasetemp() / "programs"
