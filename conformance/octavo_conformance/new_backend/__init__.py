"""`octavo new-backend NAME`: a plugin package that passes the suite as it is written, and is replaced bit by bit."""

from __future__ import annotations

from octavo_conformance.new_backend.generate import NewBackendError, generate

__all__ = ["NewBackendError", "generate"]
