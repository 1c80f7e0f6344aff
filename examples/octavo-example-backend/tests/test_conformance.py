"""Octavo's conformance suite as this package's own tests: one test a case."""

from octavo_conformance.test_conformance import test_case  # noqa: F401  # collected here under its own name
