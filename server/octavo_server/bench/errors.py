"""What can go wrong in a benchmark by the user's doing."""

from __future__ import annotations

from octavo.errors import OctavoError


class BenchError(OctavoError):
    """A measurement cannot be made as asked."""
