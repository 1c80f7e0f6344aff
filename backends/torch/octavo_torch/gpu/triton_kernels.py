"""The kernels of this package as a device's choice."""

from __future__ import annotations

import torch

from octavo.backend import Capabilities, KVCache, KVLayout, QuantizedWeight, Weight, WeightRole
from octavo_torch.arrays import torch_dtype
from octavo_torch.gpu.kernel_choice import BLOCK_SIZES, COMPUTE, KernelChoice
from octavo_torch.kernels import quantized_linear as quantized
from octavo_torch.kernels.kv import SCALED, PagedKV, block_bytes
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.triton_ops import TritonOps

_HEAD_SIZES = tuple(range(8, 257, 8))
_MATRICES = (WeightRole.LINEAR, WeightRole.EMBEDDING, WeightRole.TIED_EMBEDDING, WeightRole.EXPERTS)


class TritonKernels(KernelChoice):
    """This package's own kernels."""

    name = "triton"

    def __init__(self, runtime: KernelRuntime) -> None:
        self.ops = TritonOps(runtime)
        self.capabilities = Capabilities(
            dtypes=COMPUTE,
            default_dtype=None,
            kv_dtypes=(*COMPUTE, *SCALED),
            quantized_bits=(4, 8),
            block_sizes=BLOCK_SIZES,
            head_sizes=_HEAD_SIZES,
            graph_capture=True,
            asynchronous=True,
        )

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return block_bytes(layout)

    def allocate_kv(self, layout: KVLayout, blocks: int, device: torch.device) -> KVCache:
        shape = (blocks, layout.block_size, layout.kv_heads, layout.head_size)

        def side() -> torch.Tensor:
            return torch.empty(shape, dtype=torch_dtype(layout.dtype), device=device)

        def scales() -> torch.Tensor | None:
            return torch.empty(shape[:3], device=device) if layout.dtype in SCALED else None

        return [PagedKV(side(), side(), scales(), scales()) for _ in range(layout.layers)]

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        return quantized.pack(weight) if isinstance(weight, QuantizedWeight) and role in _MATRICES else weight
