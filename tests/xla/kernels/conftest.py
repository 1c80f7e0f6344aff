"""The TPU kernels without a TPU: interpreted on the host, simulated, and compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

# Before jax is imported: the host computes, and libtpu, which only compiles here, looks for no chip.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@pytest.fixture(scope="session")
def tpu() -> Callable[[str], Any]:
    """A device to compile for, by its generation."""
    if not find_spec("libtpu"):
        pytest.skip("libtpu, which compiles for TPUs, is not installed")
    from jax.experimental import topologies

    return lambda name: topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[name]).devices[0]


@pytest.fixture
def races() -> Iterator[Callable[[], bool]]:
    """Whether the simulator found a race since the test began to run kernels."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # the result of the detector has no public name
    from jax.experimental.pallas import tpu as pltpu

    yield lambda: bool(interpret_pallas_call.races.races_found)
    pltpu.reset_tpu_interpret_mode_state()
