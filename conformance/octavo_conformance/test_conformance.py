"""The suite under pytest: one test a case. `pytest --pyargs octavo_conformance --octavo-backend NAME`.

A vendor's own tests take it in with one line: `from octavo_conformance.test_conformance import test_case`.
"""

from __future__ import annotations

from octavo_conformance.pytest_plugin import PytestCase


def test_case(octavo_case: PytestCase) -> None:
    """One case of the suite on the backend that --octavo-backend names."""
    octavo_case.run()
