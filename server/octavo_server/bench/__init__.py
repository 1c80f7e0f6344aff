"""`octavo bench`: what this machine does, in numbers that anyone can make again."""

from __future__ import annotations

from octavo_server.bench.commands import bench

__all__ = ["bench"]
