"""Errors a user of Octavo can cause, each a sentence that names the fact and the way out.

Everything here is a `ValueError`: the request or the configuration was wrong, not the program. Backends raise the
errors of `octavo.backend.errors`.
"""

from __future__ import annotations


class OctavoError(ValueError):
    """Root of the errors that a user's input can cause."""


class ConfigError(OctavoError):
    """An option has a value that cannot be used here."""


class ModelError(OctavoError):
    """A model cannot be found, read or run."""


class InvalidRequestError(OctavoError):
    """A request asks for something that is not possible; it ends that request only.

    `param` names the offending field as the OpenAI API spells it, or is None; `code` is a stable machine-readable word.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFullError(OctavoError):
    """More requests wait than the configuration allows; the client should try again later."""
