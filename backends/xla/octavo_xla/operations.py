"""Which operations run: plain XLA, or with the Pallas kernels for the paged cache."""

from __future__ import annotations

from octavo.backend import Ops
from octavo_xla.ops import XlaOps
from octavo_xla.probing import Attention

_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
"""Kinds of TPU whose two cores are one device: a kernel's grid is dealt to both."""


def operations(kernel: Attention, device_kind: str) -> Ops:
    """The operations that trace into a program for devices of a kind, as jax names it."""
    if kernel is Attention.XLA:
        return XlaOps()
    from octavo_xla.kernels.operations import KernelOps

    return KernelOps(cores=2 if device_kind in _TWO_CORES else 1, interpret=kernel is Attention.INTERPRETED)
