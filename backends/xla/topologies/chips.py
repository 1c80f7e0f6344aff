"""The TPUs that steps are compiled for, as libtpu names them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30

_ABSENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""What keeps libtpu from looking for a machine with TPUs around it."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A kind of TPU. hbm: bytes that a program may use of a chip, which is a little less than it has.

    topologies: by the number of chips in use; a host has four, so that one chip is the first of four.
    """

    name: str
    hbm: int
    topologies: Mapping[int, str]

    def devices(self, count: int) -> list[Any]:
        """The first `count` chips of the smallest topology that has as many."""
        from jax.experimental import topologies

        return list(topologies.get_topology_desc(platform="tpu", topology_name=self.topologies[count]).devices[:count])


CHIPS: Mapping[str, Chip] = {
    name: Chip(name, int(gib * GIB), {1: four, 4: four, 8: eight})
    for name, gib, four, eight in (
        ("v5e", 15.75, "v5e:2x2", "v5e:2x4"),
        ("v5p", 95.74, "v5p:2x2x1", "v5p:2x2x2"),
        ("v6e", 31.25, "v6e:2x2", "v6e:2x4"),
    )
}


def without_tpus() -> None:
    """Prepare this process and those it starts for compiling only; before jax is imported."""
    os.environ.update(_ABSENT)
