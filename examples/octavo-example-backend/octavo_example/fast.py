"""The same device with kernels of its own: two operations overridden, a weight layout, and a plan made once a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from octavo.backend import (
    AttentionMetadata,
    DenseWeight,
    DeviceConfig,
    LayerKV,
    Ops,
    StepInputs,
    Weight,
    WeightRole,
)
from octavo_example.device import ExampleDevice


@dataclass(frozen=True, slots=True)
class PanelWeight:
    """A matrix in the layout that this card's matrix unit reads: transposed, [in, out]."""

    panels: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence of a step: tokens start .. stop - 1, where they stand, and where its context is."""

    start: int
    stop: int
    positions: np.ndarray  # [tokens of this sequence]
    table: np.ndarray  # [blocks], in order; past the context they mean nothing
    context: int


class FastOps(Ops):
    """What is overridden is fast; the rest still runs on the contract's own operations."""

    def linear(self, x: np.ndarray, weight: Weight) -> np.ndarray:
        if not isinstance(weight, PanelWeight):  # a tied embedding, a quantized weight
            return super().linear(x, weight)
        y = x @ weight.panels
        return y if weight.bias is None else y + weight.bias

    def paged_attention(
        self,
        q: np.ndarray,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        if softcap is not None or sinks is not None:  # rare: left to the contract's own
            return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)
        result = np.zeros_like(q)
        for span in meta.plan:
            part = q[span.start : span.stop]
            result[span.start : span.stop] = _attend(part, kv, span, scale, window)
        return result


def _attend(q: np.ndarray, kv: LayerKV, span: Span, scale: float, window: int | None) -> np.ndarray:
    """q [tokens, heads, head_size] of one sequence over its whole context, each KV head read once for its group."""
    block_size, kv_heads, size = kv.shape[2:]
    first = 0 if window is None else max(0, span.positions[0] - window + 1)  # what is before it, no token sees
    blocks = span.table[: -(-span.context // block_size)]
    keys, values = kv[:, blocks].reshape(2, -1, kv_heads, size)[:, first : span.context]
    grouped = q.reshape(len(q), kv_heads, -1, size)
    scores = np.einsum("tkgd,skd->kgts", grouped, keys, optimize=True) * scale
    slots = np.arange(first, span.context)
    hidden = slots > span.positions[:, None]  # [tokens, slots]
    if window is not None:
        hidden |= slots <= span.positions[:, None] - window
    scores = np.where(hidden, -np.inf, scores)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    odds /= odds.sum(axis=-1, keepdims=True)
    return np.einsum("kgts,skd->tkgd", odds, values, optimize=True).reshape(q.shape)


class FastExampleDevice(ExampleDevice):
    """`ExampleDevice` with the optional methods."""

    ops = FastOps()

    def __init__(self, config: DeviceConfig) -> None:
        super().__init__(config)
        self.info = replace(self.info, kernel="grouped", notes=("softcap and sinks run on the reference kernel",))

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        if role is WeightRole.LINEAR and isinstance(weight, DenseWeight):
            return PanelWeight(np.ascontiguousarray(weight.array.T), weight.bias)
        return weight

    def stage(self, inputs: StepInputs) -> StepInputs:
        meta, spans = inputs.attention, []  # still on the host: planned once a step, and not in each layer
        for row, context in enumerate(meta.context_lengths.tolist()):
            start, stop = meta.query_starts[row : row + 2].tolist()
            if start < stop:  # a padding sequence has no tokens
                spans.append(Span(start, stop, meta.positions[start:stop], meta.block_tables[row], context))
        staged = super().stage(inputs)
        return replace(staged, attention=replace(staged.attention, plan=tuple(spans)))
