"""Which operations run: plain XLA, or with the Pallas kernels for the paged cache."""

from __future__ import annotations

from functools import partial

from octavo.backend import Ops
from octavo_xla.ops import XlaOps
from octavo_xla.probing import Attention

_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
"""Kinds of TPU whose two cores are one device: a kernel's grid is dealt to both."""


def operations(kernel: Attention, device_kind: str) -> Ops:
    """The operations that trace into a program for devices of a kind, as jax names it."""
    if kernel is Attention.XLA:
        return XlaOps()
    from octavo_xla.kernels.attention import paged_attention
    from octavo_xla.kernels.copy_blocks import copy_blocks
    from octavo_xla.kernels.write_kv import write_kv

    cores, interpret = 2 if device_kind in _TWO_CORES else 1, kernel is Attention.INTERPRETED
    return XlaOps(
        partial(paged_attention, cores=cores, interpret=interpret),
        partial(write_kv, interpret=interpret),
        partial(copy_blocks, interpret=interpret),
    )
