"""What the scheduler refuses."""

from __future__ import annotations

from octavo.errors import InvalidRequestError


class RequestTooLargeError(InvalidRequestError):
    """A request could never run here, however long it waited; the message says the largest that could."""
