"""Faults of the operations on rows: embedding, norm, rotary embedding and activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import Activation, Ops, QuantizedWeight, RotaryTable, Weight
from octavo_wrong.fault import Fault, in_ops

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops("embedding", LastIdClipped, IdsInSixteenBits, EmbeddingScaled, EmbeddingAsStored)
    yield from in_ops(
        "rms_norm",
        EpsilonIgnored,
        EpsilonAssumed,
        EpsilonOutsideRoot,
        ResidualNotInSum,
        ResidualNotInNorm,
        MeanSubtracted,
        MeanInLowPrecision,
        NormWeightShifted,
        NormOverHeads,
        ResidualAddedInPlace,
    )
    yield from in_ops(
        "rotary",
        PairsConfused,
        AngleReversed,
        PositionOffByOne,
        PositionsByRow,
        KeysNotRotated,
        PartialTailDropped,
    )
    yield from in_ops("gated_activation", GateAndUpSwapped, TanhForErf, GateOverflows, ResultOverGate)


# -------------------------------------------------------------------------------------------------------- embedding


class LastIdClipped(Ops):
    """The last id of the vocabulary reads the row before it."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        rows = len(weight.codes if isinstance(weight, QuantizedWeight) else weight.array)
        return super().embedding(np.minimum(ids, np.int32(max(rows - 2, 0))), weight)


class IdsInSixteenBits(Ops):
    """Ids are kept in 16 bits: of id 65536 + n the row n is read."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        return super().embedding(ids & 0xFFFF, weight)


class EmbeddingAsStored(Ops):
    """The columns of a permuted weight come in the order in which they are stored."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        stored = replace(weight, permutation=None) if isinstance(weight, QuantizedWeight) else weight
        return super().embedding(ids, stored)


class EmbeddingScaled(Ops):
    """Rows are multiplied by sqrt(hidden), as one family of models wants it and the contract does not."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        rows = super().embedding(ids, weight)
        return rows * np.asarray(math.sqrt(rows.shape[-1]), rows.dtype)


# --------------------------------------------------------------------------------------------------------- rms_norm


class EpsilonIgnored(Ops):
    """The epsilon is left out."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        # The smallest number that still keeps 0 / 0 away.
        return super().rms_norm(x, weight, 1e-30, residual)


class EpsilonAssumed(Ops):
    """The epsilon is 1e-6, whatever was asked for."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return super().rms_norm(x, weight, 1e-6, residual)


class EpsilonOutsideRoot(Ops):
    """The epsilon is added to the root, not under it."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        _, total = super().rms_norm(x, weight, eps, residual)
        wide = total.astype(np.float32)
        root = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True)) + np.float32(eps)
        return (wide / root * weight.astype(np.float32)).astype(x.dtype), total


class ResidualNotInSum(Ops):
    """The second result is x: the residual stream is lost from layer to layer."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return super().rms_norm(x, weight, eps, residual)[0], x


class ResidualNotInNorm(Ops):
    """What is normed is x without the residual."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return super().rms_norm(x, weight, eps)[0], super().rms_norm(x, weight, eps, residual)[1]


class MeanSubtracted(Ops):
    """It is a layer norm: the mean is subtracted."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        _, total = super().rms_norm(x, weight, eps, residual)
        centred = total.astype(np.float32) - total.astype(np.float32).mean(axis=-1, keepdims=True)
        root = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + np.float32(eps))
        return (centred / root * weight.astype(np.float32)).astype(x.dtype), total


class MeanInLowPrecision(Ops):
    """The mean of the squares is taken in the dtype of x."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        right, total = super().rms_norm(x, weight, eps, residual)
        if x.dtype.itemsize > 2:
            return right, total
        with np.errstate(over="ignore", invalid="ignore"):
            squares = total * total
            mean = np.zeros(total.shape[:-1], x.dtype)
            for column in range(total.shape[-1]):
                mean = mean + squares[..., column]
            root = np.sqrt(mean.astype(np.float32)[..., None] / np.float32(total.shape[-1]) + np.float32(eps))
            return (total.astype(np.float32) / root * weight.astype(np.float32)).astype(x.dtype), total


class NormWeightShifted(Ops):
    """The weight is taken as weight + 1, as one family's checkpoints store it and the contract does not."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        return super().rms_norm(x, weight + np.asarray(1, weight.dtype), eps, residual)


class NormOverHeads(Ops):
    """The norm of [tokens, heads, head_size] goes over all heads of a token at once."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        if x.ndim < 3:
            return super().rms_norm(x, weight, eps, residual)
        flat = x.reshape(len(x), -1), np.tile(weight, x.shape[1])
        normed, total = super().rms_norm(*flat, eps, None if residual is None else residual.reshape(len(x), -1))
        return normed.reshape(x.shape), total.reshape(x.shape)


class ResidualAddedInPlace(Ops):
    """The sum is written over the residual."""

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        normed, total = super().rms_norm(x, weight, eps, residual)
        if residual is None:
            return normed, total
        residual[...] = total
        return normed, residual


# ----------------------------------------------------------------------------------------------------------- rotary


class PairsConfused(Ops):
    """Interleaved pairs are taken for halves, and halves for interleaved pairs."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return super().rotary(q, k, positions, replace(table, interleaved=not table.interleaved))


class AngleReversed(Ops):
    """Everything turns the other way round."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        half = table.cos_sin.shape[1] // 2
        reversed_ = np.concatenate([table.cos_sin[:, :half], -table.cos_sin[:, half:]], axis=1)
        return super().rotary(q, k, positions, replace(table, cos_sin=reversed_))


class PositionOffByOne(Ops):
    """A token at p turns as one at p + 1, which no score notices: they depend on differences of positions."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return super().rotary(q, k, np.minimum(positions + 1, len(table.cos_sin) - 1), table)


class PositionsByRow(Ops):
    """The tokens of a step turn as if their positions followed each other from the first one's."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        run = (positions[:1] + np.arange(len(positions), dtype=np.int32)) % len(table.cos_sin)
        return super().rotary(q, k, run, table)


class KeysNotRotated(Ops):
    """k comes back as it was."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        return super().rotary(q, k, positions, table)[0], k


class PartialTailDropped(Ops):
    """The entries of a head beyond the rotary size come back as 0."""

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        turned = tuple(side.copy() for side in super().rotary(q, k, positions, table))
        for side in turned:
            side[..., table.cos_sin.shape[1] :] = 0
        return turned[0], turned[1]


# ------------------------------------------------------------------------------------------------- gated_activation


class GateAndUpSwapped(Ops):
    """The second half of the row is taken for the gate."""

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        half = x.shape[-1] // 2
        return super().gated_activation(np.concatenate([x[..., half:], x[..., :half]], axis=-1), kind)


class TanhForErf(Ops):
    """GELU is computed by its approximation with tanh."""

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        return super().gated_activation(x, Activation.GELU_TANH if kind is Activation.GELU else kind)


class GateOverflows(Ops):
    """SiLU is computed as x * exp(x) / (1 + exp(x)): infinity over infinity for a large gate."""

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        if kind is not Activation.SILU:
            return super().gated_activation(x, kind)
        half = x.shape[-1] // 2
        gate, up = x[..., :half].astype(np.float32), x[..., half:].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return (gate * (np.exp(gate) / (1 + np.exp(gate))) * up).astype(x.dtype)


class ResultOverGate(Ops):
    """The result is written over the first half of x and returned as a view of it."""

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        gate = x[..., : x.shape[-1] // 2]
        gate[...] = super().gated_activation(x, kind)
        return gate
