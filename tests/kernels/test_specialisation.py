"""Nothing is compiled again because a context, a batch or a prompt has grown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("specialisations.py")
VARIANTS = 8
"""A function may have a few sets of constants, for sizes far apart: a bucket of tiles, a count of splits."""


@pytest.fixture(scope="module")
def counts() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Of a process in which Triton compiles, by scenario and function."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def careful(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    return {scenario: functions for scenario, functions in counts.items() if "careless" not in scenario}


def test_no_argument_that_grows_is_specialised_on(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    assert len(careful(counts)) >= 32
    for scenario, functions in careful(counts).items():
        assert functions, f"{scenario}: nothing was launched."
        for function, count in functions.items():
            assert count["keys"] == count["variants"], f"{scenario}: {function} is compiled again for other lengths."


def test_compile_time_constants_do_not_grow_with_lengths(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    for scenario, functions in careful(counts).items():
        for function, count in functions.items():
            assert count["variants"] <= VARIANTS, f"{scenario}: {count['variants']} variants of {function}"


def test_a_careless_kernel_is_found_out(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    # One value of 777 equals 1, others are divisible by 16, the rest are not: three compilations of one variant.
    assert counts["careless argument on sm_90"]["__main__.careless_argument"] == {"variants": 1, "keys": 3}
    assert counts["careless constant on sm_90"]["__main__.careless_constant"]["variants"] == 777
