"""Here steps are compiled for TPUs that are not there; without libtpu nothing is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "backends" / "xla"))  # the check is a folder of the checkout

from topologies.chips import without_tpus

without_tpus()  # before jax is imported
