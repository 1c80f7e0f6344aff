"""`python backends/xla/topologies`: see `check`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder here, which would make top-level modules of the files in it.
    sys.path[0] = str(Path(__file__).parents[1])

    from topologies.chips import without_tpus

    without_tpus()

    from topologies.check import check

    sys.exit(check(sys.argv[1:]))
