"""The contract's operations in plain XLA, and the layouts of weights that they read."""

from __future__ import annotations

from octavo_xla.ops.operations import XlaOps
from octavo_xla.ops.prepare import TransposedWeight, prepare

__all__ = ["TransposedWeight", "XlaOps", "prepare"]
