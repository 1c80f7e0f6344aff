"""Reports as static pages: the matrix of backends, operations and dtypes, and behind it every error figure."""

from __future__ import annotations

from octavo_conformance.site.render import render

__all__ = ["render"]
