"""What is wrong with a report."""

from __future__ import annotations


class ReportError(ValueError):
    """A report that cannot be used; the message says which and why, in a sentence."""
