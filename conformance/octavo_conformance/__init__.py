"""The conformance suite: what a backend has to do, case by case, and the report that proves it.

`octavo conformance run --backend NAME` runs it from the command line, `pytest --pyargs octavo_conformance
--octavo-backend NAME` from a vendor's own repository. `suite.cases()` is the list of what is run.
"""

from __future__ import annotations

SUITE_VERSION = "1.0"
"""Version of the list of cases. The first number is the version of the contract that they check."""
