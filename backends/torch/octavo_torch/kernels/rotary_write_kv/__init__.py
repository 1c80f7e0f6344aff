"""Rotary position embedding fused with the KV cache's write: q, k and v are read once, in one launch."""

from octavo_torch.kernels.rotary_write_kv.catalog import KERNEL
from octavo_torch.kernels.rotary_write_kv.operation import TUNABLE, cost, rotary, rotary_write_kv, write_kv

__all__ = ["KERNEL", "TUNABLE", "cost", "rotary", "rotary_write_kv", "write_kv"]
