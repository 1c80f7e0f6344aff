"""Faults of `mixture_of_experts` and `lora`, where each row takes weights of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import ExpertWeights, LoRABank, Ops, QuantizedWeight, Weight
from octavo_wrong.fault import Fault, in_ops

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "mixture_of_experts",
        ExpertsNotNormalised,
        ExpertsAlwaysNormalised,
        RouterTiesToHighest,
        ExpertsMultipliedByZero,
        FirstExpertForAll,
        SlotsOfExpertFull,
        ExpertsBeyondThirtyTwo,
        SharesOnInputs,
    )
    yield from in_ops("lora", AdapterOfNeighbour, NoAdapterIsTheLast, FirstAdapterForAll, LoraOnAllRows, LoraInPlace)


# ---------------------------------------------------------------------------------------------- mixture_of_experts


class ExpertsNotNormalised(Ops):
    """The probabilities of the chosen experts are not divided by their sum."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        return super().mixture_of_experts(x, router_logits, replace(experts, renormalize=False), top_k)


class ExpertsAlwaysNormalised(Ops):
    """The probabilities of the chosen experts are divided by their sum, asked for or not."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        return super().mixture_of_experts(x, router_logits, replace(experts, renormalize=True), top_k)


class RouterTiesToHighest(Ops):
    """Of experts with equal logits the one with the highest index is chosen."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        return super().mixture_of_experts(
            x,
            np.ascontiguousarray(router_logits[:, ::-1]),
            replace(experts, gate_up=_reversed(experts.gate_up), down=_reversed(experts.down)),
            top_k,
        )


class ExpertsMultipliedByZero(Ops):
    """Experts that a row did not choose are multiplied by 0 and added all the same."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        right = super().mixture_of_experts(x, router_logits, experts, top_k)
        every = replace(experts, renormalize=False)
        with np.errstate(over="ignore", invalid="ignore"):
            # All experts with a weight each: what is infinite there is infinite times 0 here.
            dense = super().mixture_of_experts(x, np.zeros_like(router_logits), every, router_logits.shape[-1])
            return right + (dense * np.asarray(0, dense.dtype)).astype(right.dtype)


class FirstExpertForAll(Ops):
    """All tokens of a step go through the experts that its first token chose."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        first = np.broadcast_to(router_logits[:1], router_logits.shape)
        return super().mixture_of_experts(x, first, experts, top_k)


class SlotsOfExpertFull(Ops):
    """An expert takes four tokens of a step; those that come later lose its part."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        right = super().mixture_of_experts(x, router_logits, experts, top_k)
        _, chosen = self.top_k(router_logits.astype(np.float32), top_k)
        taken = np.zeros(router_logits.shape[-1], np.int64)
        for row, first in enumerate(chosen[:, 0].tolist()):
            taken[first] += 1
            if taken[first] > 4:
                right[row] = 0
        return right


class ExpertsBeyondThirtyTwo(Ops):
    """The chosen experts are kept as a mask of 32 bits: expert 32 + n is lost."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        right = super().mixture_of_experts(x, router_logits, experts, top_k)
        _, chosen = self.top_k(router_logits.astype(np.float32), top_k)
        return np.where((chosen >= 32).any(axis=-1)[:, None], np.asarray(0, right.dtype), right)


class SharesOnInputs(Ops):
    """An expert's probability is multiplied with what goes into it, not with what comes out."""

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        logits = router_logits.astype(np.float32)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        kept, chosen = self.top_k(odds / odds.sum(axis=-1, keepdims=True), top_k)
        if experts.renormalize:
            kept = kept / kept.sum(axis=-1, keepdims=True)
        output = np.zeros(x.shape, np.float32)
        for place in range(top_k):
            scaled = (x.astype(np.float32) * kept[:, place, None]).astype(x.dtype)
            alone = np.full(logits.shape, -1e30, np.float32)  # this expert, with probability 1
            np.put_along_axis(alone, chosen[:, place, None], 0.0, axis=-1)
            output += super().mixture_of_experts(scaled, alone, experts, 1).astype(np.float32)
        return output.astype(x.dtype)


def _reversed(weight: Weight) -> Weight:
    """The experts of a weight in reverse order."""

    def turned(array: Array | None) -> Array | None:
        return None if array is None else array[::-1]

    if isinstance(weight, QuantizedWeight):
        return replace(
            weight,
            codes=turned(weight.codes),
            scales=turned(weight.scales),
            offsets=turned(weight.offsets),
            permutation=turned(weight.permutation),
            bias=turned(weight.bias),
        )
    return replace(weight, array=turned(weight.array), bias=turned(weight.bias))


# ------------------------------------------------------------------------------------------------------------- lora


class AdapterOfNeighbour(Ops):
    """Each row takes the adapter of the row after it, the last row that of the first."""

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        return super().lora(x, y, bank, np.roll(adapter_ids, -1))


class NoAdapterIsTheLast(Ops):
    """Adapter -1 counts from the end: it is the last one."""

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        return super().lora(x, y, bank, np.where(adapter_ids < 0, adapter_ids + len(bank.a), adapter_ids))


class FirstAdapterForAll(Ops):
    """A step has one adapter: that of its first row that has one."""

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        used = adapter_ids[adapter_ids >= 0]
        one = np.where(adapter_ids >= 0, used[0], adapter_ids) if len(used) else adapter_ids
        return super().lora(x, y, bank, one)


class LoraOnAllRows(Ops):
    """Rows without an adapter are multiplied by 0 and added all the same, whatever they hold."""

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        delta = np.zeros(y.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for adapter in range(len(bank.a)):
                a, b = bank.a[adapter].astype(np.float32), bank.b[adapter].astype(np.float32)
                delta += (adapter_ids == adapter)[:, None] * (x.astype(np.float32) @ a.T @ b.T)
            return (y.astype(np.float32) + delta).astype(y.dtype)


class LoraInPlace(Ops):
    """The adapter's part is added to y itself."""

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        y[...] = super().lora(x, y, bank, adapter_ids)
        return y
