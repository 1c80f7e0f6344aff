"""The kernels under Triton's interpreter.

Triton decides when it is imported whether it compiles or interprets, so these tests need a process of their own:
`make test` gives them one.
"""

from __future__ import annotations

import os
import sys

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("Triton is imported already, and compiles: the kernels' tests want a process of their own.")
os.environ["TRITON_INTERPRET"] = "1"

from octavo_torch.kernels.interpreter import hasten
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import TuningTable

hasten()

TARGETS = {
    "sm_90": Target("cuda", "sm_90", 32, 232448, 132, interpreted=True),
    "gfx942": Target("hip", "gfx942", 64, 65536, 304, interpreted=True),
}


@pytest.fixture(params=sorted(TARGETS))
def runtime(request: pytest.FixtureRequest) -> KernelRuntime:
    """What a kernel's host function runs with, for a warp of 32 and one of 64 threads."""
    return KernelRuntime(TARGETS[request.param], TuningTable())
