"""Which operations run, and the forms of weights and cache that belong to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from octavo.backend import Capabilities, DType, KVCache, KVLayout, Ops, StepInputs, Weight, WeightRole
from octavo_torch.arrays import torch_dtype
from octavo_torch.ops import TorchOps

COMPUTE = (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)
BLOCK_SIZES = (16, 32, 64, 128, 8)


class KernelChoice(ABC):
    """One of the kernels that a backend lists.

    name: as `kernel = "..."` says it. ops: the operations. note: a sentence for the operator, or "".
    """

    name: str
    ops: Ops
    capabilities: Capabilities
    note: str = ""

    @abstractmethod
    def kv_block_bytes(self, layout: KVLayout) -> int:
        """`Device.kv_block_bytes`."""

    @abstractmethod
    def allocate_kv(self, layout: KVLayout, blocks: int, device: torch.device) -> KVCache:
        """`Device.allocate_kv` for a layout within the capabilities. torch.OutOfMemoryError may pass."""

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        """`Device.prepare`."""
        return weight

    def plan(self, inputs: StepInputs) -> StepInputs:
        """Plan a step from its arrays on the host, before they are staged. Arrays of a plan that is a dataclass travel
        with the others. Inputs that are on the card already have their plan.
        """
        return inputs


class TorchKernels(KernelChoice):
    """torch's own operations on the plain cache: slow, and right wherever torch runs. They look at values on the host,
    so that they can be neither recorded nor overlapped."""

    name = "torch"

    def __init__(self) -> None:
        self.ops = TorchOps()
        self.capabilities = Capabilities(dtypes=COMPUTE, default_dtype=None, kv_dtypes=COMPUTE, block_sizes=BLOCK_SIZES)

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return layout.block_bytes

    def allocate_kv(self, layout: KVLayout, blocks: int, device: torch.device) -> KVCache:
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [torch.empty(shape, dtype=torch_dtype(layout.dtype), device=device) for _ in range(layout.layers)]
