"""The version of the backend contract, and the rule by which core accepts a plugin."""

from __future__ import annotations

API_VERSION = 1
"""Version of the contract in this release of octavo-core."""

OLDEST_API_VERSION = max(1, API_VERSION - 1)
"""Core runs plugins written for this version and the one before it."""


def accepts(api_version: int) -> bool:
    """Whether a plugin written for `api_version` runs on this core."""
    return OLDEST_API_VERSION <= api_version <= API_VERSION
