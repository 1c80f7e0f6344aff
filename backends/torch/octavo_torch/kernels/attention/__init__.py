"""Paged attention for decode, prefill, chunked prefill and mixed batches: one source, one launch."""

from octavo_torch.kernels.attention.catalog import KERNEL
from octavo_torch.kernels.attention.cost import cost
from octavo_torch.kernels.attention.operation import TUNABLE, paged_attention

__all__ = ["KERNEL", "TUNABLE", "cost", "paged_attention"]
