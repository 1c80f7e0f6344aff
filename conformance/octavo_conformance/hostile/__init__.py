"""Memory as a step really finds it: shuffled blocks, garbage in every slot that it does not own."""

from __future__ import annotations

from octavo_conformance.hostile.batch import Batch, Chunk, assemble, lay_out
from octavo_conformance.hostile.cache import HostileCache
from octavo_conformance.hostile.garbage import garbage

__all__ = ["Batch", "Chunk", "HostileCache", "assemble", "garbage", "lay_out"]
