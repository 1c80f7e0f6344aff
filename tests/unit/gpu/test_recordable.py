"""A decode step of a model can be recorded as a graph: it reads no value and makes no tensor on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def asked() -> Mapping[str, Sequence[str]]:
    """What the step asks of the host, by kind of sampling."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("recordable.py"))]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_no_kind_of_sampling_needs_the_host(asked: Mapping[str, Sequence[str]]) -> None:
    assert len(asked) == 8
    assert {name: seen for name, seen in asked.items() if seen and name != "a careless step"} == {}


def test_a_step_that_needs_the_host_is_seen(asked: Mapping[str, Sequence[str]]) -> None:
    assert any("on the host" in seen for seen in asked["a careless step"])
