"""The contract's operations with the native kernels; what they do not take goes to torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo.backend import (
    Activation,
    Array,
    AttentionMetadata,
    KVCache,
    LayerKV,
    RotaryTable,
    Weight,
)
from octavo_cpu.native.kv import PagedKV
from octavo_cpu.native.library import TYPES, Library
from octavo_torch import TorchOps


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A dense matrix [out, in] in the kernels' panels; the only copy of it.

    panels [ceil(out / panel), in, panel]. bias: float32 [out] or None.
    """

    panels: torch.Tensor
    out: int
    bias: torch.Tensor | None = None


class CpuOps(TorchOps):
    """Float32 and bfloat16 on the native kernels, sums in float32 for both."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def embedding(self, ids: Array, weight: Weight) -> Array:
        if isinstance(weight, PackedWeight):
            return self._library.embedding(ids.contiguous(), weight.panels)
        return super().embedding(ids, weight)

    def linear(self, x: Array, weight: Weight) -> Array:
        if not isinstance(weight, PackedWeight):
            return super().linear(x, weight)
        if x.dtype != weight.panels.dtype:
            return self.linear(x.to(weight.panels.dtype), weight).to(x.dtype)
        return self._library.linear(x.contiguous(), weight.panels, weight.bias, weight.out)

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        if x.dtype not in TYPES or weight.dtype != x.dtype:
            return super().rms_norm(x, weight, eps, residual)
        other = None if residual is None else residual.contiguous()
        return self._library.rms_norm(x.contiguous(), weight, eps, other)

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        if not isinstance(kv, PagedKV):
            return super().write_kv(kv, k, v, slots)
        self._library.write_kv(kv, _rows(k), _rows(v), slots)
        return kv

    def rotary_write_kv(
        self, q: Array, k: Array, v: Array, positions: Array, table: RotaryTable, kv: LayerKV, slots: Array
    ) -> tuple[Array, LayerKV]:
        if not isinstance(kv, PagedKV):
            return super().rotary_write_kv(q, k, v, positions, table, kv, slots)
        turned = self._library.rotary_write_kv(
            kv, _rows(q), _rows(k), _rows(v), positions, table.cos_sin, table.interleaved, slots
        )
        return turned, kv

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
        if not isinstance(kv, PagedKV):
            return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)
        extra = None if sinks is None else sinks.float().contiguous()
        return self._library.paged_attention(_rows(q), kv, meta, scale, window, softcap, extra)

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        if x.dtype not in TYPES:
            return super().gated_activation(x, kind)
        return self._library.gated_activation(x.contiguous(), kind)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        if x.dtype != torch.float32:
            return super().top_k(x, k)
        return self._library.top_k(x.contiguous(), k)

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        plain: Sequence[LayerKV] = [layer for layer in kv if not isinstance(layer, PagedKV)]
        super().copy_blocks(plain, source, target)
        index = target.long()
        for layer in kv:
            if isinstance(layer, PagedKV):
                layer.memory.index_copy_(0, index, layer.memory.index_select(0, source))
        return kv


def _rows(x: Array) -> Array:
    """x [tokens, heads, head_size] with each token contiguous; tokens may lie apart, as slices of a fused qkv do."""
    size = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == size else x.contiguous()
