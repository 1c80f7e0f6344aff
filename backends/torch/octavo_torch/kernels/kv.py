"""One layer's paged KV cache as the Triton kernels see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.backend import DType, KVLayout

SCALED = (DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.INT8)
"""Cache dtypes whose entries carry a scale: one for each slot and head, made when the slot is written."""


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Keys and values of one layer.

    keys, values [blocks, block_size, kv_heads, head_size]: views of any strides whose last axis is contiguous; a
        vendor's kernels may want another order in memory.
    key_scales, value_scales: float32 [blocks, block_size, kv_heads] for a dtype in SCALED, else None. A stored entry
        times its scale is the key: the largest of a head's entries lands on the dtype's largest number, so that no
        calibration is needed and nothing overflows.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        return self.keys.shape[1]


def block_bytes(layout: KVLayout) -> int:
    """Bytes of one block over all layers, scales included."""
    scales = 2 * layout.layers * layout.block_size * layout.kv_heads * 4 if layout.dtype in SCALED else 0
    return layout.block_bytes + scales
