"""The contract's operations with the Triton kernels; what they do not take goes to torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.backend import (
    Activation,
    Array,
    AttentionMetadata,
    ExpertWeights,
    KVCache,
    LayerKV,
    LoRABank,
    RotaryTable,
    Weight,
)
from octavo_torch.kernels import quantized_linear as quantized
from octavo_torch.kernels.attention import paged_attention
from octavo_torch.kernels.gated_activation import gated_activation
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.lora import lora
from octavo_torch.kernels.mixture_of_experts import mixture_of_experts, takes
from octavo_torch.kernels.probability_units import probability_units
from octavo_torch.kernels.rms_norm import rms_norm
from octavo_torch.kernels.rotary_write_kv import rotary, rotary_write_kv, write_kv
from octavo_torch.kernels.top_k import top_k
from octavo_torch.ops import TorchOps


class TritonOps(TorchOps):
    """Float16, bfloat16 and float32 on the Triton kernels, sums in float32 for all of them.

    The KV cache is a list of `PagedKV`; quantized weights come from `prepare` as `PackedQuantizedWeight`.
    """

    def __init__(self, runtime: KernelRuntime) -> None:
        self.runtime = runtime

    def embedding(self, ids: Array, weight: Weight) -> Array:
        if isinstance(weight, quantized.PackedQuantizedWeight):
            return quantized.embedding(ids, weight)
        return super().embedding(ids, weight)

    def linear(self, x: Array, weight: Weight) -> Array:
        if isinstance(weight, quantized.PackedQuantizedWeight):
            return quantized.quantized_linear(self.runtime, x, weight)
        return super().linear(x, weight)

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return rms_norm(self.runtime, x, weight, eps, residual)

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return rotary(self.runtime, q, k, positions, table)

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        write_kv(self.runtime, kv, k, v, slots)
        return kv

    def rotary_write_kv(
        self, q: Array, k: Array, v: Array, positions: Array, table: RotaryTable, kv: LayerKV, slots: Array
    ) -> tuple[Array, LayerKV]:
        return rotary_write_kv(self.runtime, q, k, v, positions, table, kv, slots), kv

    def paged_attention(
        self,
        q: Array,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        return paged_attention(self.runtime, q, kv, meta, scale, window, softcap, sinks)

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        return gated_activation(self.runtime, x, kind)

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        if not takes(x, experts):
            return super().mixture_of_experts(x, router_logits, experts, top_k)
        return mixture_of_experts(self.runtime, x, router_logits, experts, top_k)

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        return lora(self.runtime, x, y, bank, adapter_ids)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        return top_k(self.runtime, x, k)

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        return probability_units(self.runtime, x, temperatures)

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        index = target.long()
        for layer in kv:
            for part in _parts(layer):
                # As bytes: torch copies rows of float8 on no device, and bits are all there is to copy.
                rows = part.view(torch.uint8) if part.element_size() == 1 else part
                rows.index_copy_(0, index, rows.index_select(0, source))
        return kv


def _parts(layer: PagedKV) -> Sequence[torch.Tensor]:
    parts = (layer.keys, layer.values, layer.key_scales, layer.value_scales)
    return [part for part in parts if part is not None]
