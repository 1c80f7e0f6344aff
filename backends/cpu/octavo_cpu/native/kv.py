"""One layer's paged KV cache in the layout of the native kernels, drawn in `kv_layout.h`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.backend import KVLayout

GROUP = 16
"""Tokens whose keys are stored transposed together, and the vector that rows of values are padded to."""


@dataclass(frozen=True, slots=True)
class PagedKV:
    """memory [blocks, elements of a block]: keys and values of one layer."""

    memory: torch.Tensor
    kv_heads: int
    head_size: int
    block_size: int


def block_elements(layout: KVLayout) -> int:
    """Elements that one block of one layer takes, padding included."""
    groups = -(-layout.block_size // GROUP)
    row = -(-layout.head_size // GROUP) * GROUP
    return layout.kv_heads * groups * GROUP * (layout.head_size + row)
