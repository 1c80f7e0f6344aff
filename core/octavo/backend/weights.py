"""Weights: how core hands a tensor over (`TensorSource`) and what the ops receive (`Weight`).

A weight is tagged by its type. `Device.prepare` may return any type of its own, which only its own ops will see; the
reference ops know the types of this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from octavo.backend.dtype import DType

Array: TypeAlias = Any
"""An array of the backend's own library (NumPy, torch, jax ...), on its device."""


class Activation(str, Enum):
    """The non-linearity of a gated feed-forward layer."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


class WeightRole(str, Enum):
    """What a weight is used for, so that `Device.prepare` can choose its layout."""

    LINEAR = "linear"  # only by `linear`
    EMBEDDING = "embedding"  # only by `embedding`
    TIED_EMBEDDING = "tied_embedding"  # by both: the input and the output embedding share it
    NORM = "norm"
    EXPERTS = "experts"
    OTHER = "other"


# --------------------------------------------------------------------------------------------------- on the host


class TensorSource(ABC):
    """A tensor of a checkpoint that has not been read yet.

    name: as in the checkpoint, for error messages.
    shape, dtype: of the whole tensor.
    shard_axis: the axis that tensor parallelism splits, or None for a tensor every shard holds whole.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    shard_axis: int | None = None

    @abstractmethod
    def read(self) -> np.ndarray:
        """The tensor as a NumPy array of `shape` and `dtype`; a view of the mapped file where that is possible."""

    @abstractmethod
    def shard(self, rank: int, size: int) -> TensorSource:
        """The part that shard `rank` of `size` holds.

        Raises ValueError when `shard_axis` does not divide by `size`, naming the sizes that would do.
        """


class ArraySource(TensorSource):
    """A tensor that is a NumPy array (often a view of a mapped file)."""

    def __init__(self, name: str, array: np.ndarray, shard_axis: int | None = None) -> None:
        self.name = name
        self.shape = tuple(array.shape)
        self.dtype = DType.of(array)
        self.shard_axis = shard_axis
        self._array = array

    def read(self) -> np.ndarray:
        return self._array

    def shard(self, rank: int, size: int) -> TensorSource:
        if self.shard_axis is None or size == 1:
            return self
        length = self.shape[self.shard_axis]
        if length % size:
            fits = [n for n in range(1, size) if length % n == 0]
            raise ValueError(
                f"{self.name}: axis {self.shard_axis} has {length} entries and does not divide into {size} shards; "
                f"{', '.join(map(str, fits))} would do."
            )
        step = length // size
        index = [slice(None)] * len(self.shape)
        index[self.shard_axis] = slice(rank * step, (rank + 1) * step)
        return ArraySource(self.name, self._array[tuple(index)], self.shard_axis)


class ConcatenatedSource(TensorSource):
    """Several tensors along axis 0 as one (q, k and v; gate and up), sharded part by part.

    Shard r holds the r-th share of every part, in order, so that a shard of a fused projection still has its own
    q, k and v rows. Parts of different dtypes are read as float32, which holds them all. Raises ValueError for
    parts whose other axes differ.
    """

    def __init__(self, name: str, parts: Sequence[TensorSource]) -> None:
        self.name = name
        self.parts = tuple(parts)
        for part in self.parts:
            if part.shape[1:] != self.parts[0].shape[1:]:
                shapes = ", ".join(f"{part.name} {part.shape}" for part in self.parts)
                raise ValueError(f"{name}: its parts differ in more than the first axis: {shapes}.")
        self.shape = (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])
        dtypes = {part.dtype for part in self.parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else DType.FLOAT32
        self.shard_axis = self.parts[0].shard_axis

    def read(self) -> np.ndarray:
        return np.concatenate([part.read().astype(self.dtype.numpy, copy=False) for part in self.parts], axis=0)

    def shard(self, rank: int, size: int) -> TensorSource:
        return ConcatenatedSource(self.name, [part.shard(rank, size) for part in self.parts])


# ------------------------------------------------------------------------------------------------- on the device


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A plain matrix. array [out, in]; bias [out] or None. Both may carry a leading [experts] axis."""

    array: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix in groups along its input axis, each with its own scale.

    w[o, i] = scales[o, g] * value + offsets[o, g],  g = i // group_size
    value   = codebook[code] where a codebook is given, the code itself otherwise

    codes: uint8 [out, in], values 0 .. 2**bits - 1; with bits == 4 two codes a byte, [out, in // 2], the even input in
        the low nibble. A float8 array [out, in] is its own value.
    scales: float [out, in // group_size]. offsets: the same shape, or None for 0.
    codebook: float [2**bits], or None.
    permutation: int32 [in], or None: column i of the matrix multiplies x[permutation[i]] (GPTQ's activation order).
    bias: [out] or None. All but codebook may carry a leading [experts] axis.

    This covers GGUF's Q4_0 .. Q8_0 and K-quants (their two-level scales multiplied out are exact in float32), GPTQ,
    AWQ, block-scaled float8, and the code books of NF4, MXFP4 and IQ4_NL.
    """

    codes: Array
    scales: Array
    offsets: Array | None
    bits: int
    group_size: int
    codebook: Array | None = None
    permutation: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts of one mixture-of-experts layer.

    gate_up: weight [experts, 2 * intermediate, hidden], the gate's rows first. down: weight [experts, hidden,
        intermediate].
    renormalize: the chosen experts' probabilities are divided by their sum (Mixtral; Qwen with norm_topk_prob).
    """

    gate_up: Weight
    down: Weight
    activation: Activation = Activation.SILU
    renormalize: bool = True


@dataclass(frozen=True, slots=True)
class LoRABank:
    """Low-rank adapters of one linear layer (Hu et al. 2021), for rows of mixed adapters.

    a [adapters, rank, in], b [adapters, out, rank] (scaled by alpha / rank already), padded with zeros to one rank.
    """

    a: Array
    b: Array


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines of every position.

    cos_sin: float32 [positions, rotary_size], the cosines in the first half. interleaved: pairs are (2i, 2i + 1) and
    not (i, i + rotary_size / 2). Only the first rotary_size entries of a head are rotated.
    """

    cos_sin: Array
    interleaved: bool = False


Weight: TypeAlias = DenseWeight | QuantizedWeight | Any
"""What `linear` and `embedding` take: a type of this module, or whatever this backend's `prepare` returned."""
