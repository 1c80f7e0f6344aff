"""The contract's operations, with kernels for those that read and write the paged cache."""

from __future__ import annotations

from functools import partial

from octavo.backend import Array, KVCache
from octavo_xla.kernels.attention import paged_attention
from octavo_xla.kernels.copy_blocks import copy_blocks
from octavo_xla.kernels.write_kv import write_kv
from octavo_xla.ops import XlaOps


class KernelOps(XlaOps):
    """cores: that a device has. interpret: whether there is no TPU to run them."""

    def __init__(self, cores: int, interpret: bool = False) -> None:
        attention = partial(paged_attention, cores=cores, interpret=interpret)
        super().__init__(attention, partial(write_kv, interpret=interpret))
        self._interpret = interpret

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return copy_blocks(kv, source, target, interpret=self._interpret)
