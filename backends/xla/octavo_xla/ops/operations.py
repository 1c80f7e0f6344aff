"""The contract's operations on jax arrays: pure functions of static shapes, traceable and correct on every platform."""

from __future__ import annotations

from typing import Protocol

from octavo.backend import (
    Activation,
    Array,
    AttentionMetadata,
    ExpertWeights,
    KVCache,
    LoRABank,
    Ops,
    RotaryTable,
    Weight,
)
from octavo_xla.kv import PagedKV
from octavo_xla.ops import attention, cache, elementwise, linear, sampling
from octavo_xla.ops.experts import mixture_of_experts
from octavo_xla.ops.lora import lora


class Attention(Protocol):
    """`Ops.paged_attention` as a function."""

    def __call__(
        self,
        q: Array,
        kv: PagedKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array: ...


class Write(Protocol):
    """`Ops.write_kv` as a function."""

    def __call__(self, kv: PagedKV, k: Array, v: Array, slots: Array) -> PagedKV: ...


class Copy(Protocol):
    """`Ops.copy_blocks` as a function."""

    def __call__(self, kv: KVCache, source: Array, target: Array) -> KVCache: ...


class XlaOps(Ops):
    """The operations in XLA. Nothing is computed in place: what takes over memory is donated by whoever compiles.

    attention, write, copy: those that read and write the paged cache; a platform with kernels of its own gives them.
    """

    def __init__(
        self,
        attention: Attention = attention.paged_attention,
        write: Write = cache.write_kv,
        copy: Copy = cache.copy_blocks,
    ) -> None:
        self._attention = attention
        self._write = write
        self._copy = copy

    def embedding(self, ids: Array, weight: Weight) -> Array:
        return linear.embedding(ids, weight)

    def linear(self, x: Array, weight: Weight) -> Array:
        return linear.linear(x, weight)

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return elementwise.rms_norm(x, weight, eps, residual)

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return elementwise.rotary(q, positions, table), elementwise.rotary(k, positions, table)

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        return elementwise.gated_activation(x, kind)

    def write_kv(self, kv: PagedKV, k: Array, v: Array, slots: Array) -> PagedKV:
        return self._write(kv, k, v, slots)

    def paged_attention(
        self,
        q: Array,
        kv: PagedKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        return self._attention(q, kv, meta, scale, window, softcap, sinks)

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return self._copy(kv, source, target)

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        return mixture_of_experts(x, router_logits, experts, top_k)

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        return lora(x, y, bank, adapter_ids)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        return sampling.top_k(x, k)

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        return sampling.probability_units(x, temperatures)

    def scatter_add(self, x: Array, ids: Array, values: Array) -> Array:
        return sampling.scatter_add(x, ids, values)
