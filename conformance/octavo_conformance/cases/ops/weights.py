"""Weights for cases: made on the host, where the oracle reads them, and taken to the device as a checkpoint's are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.backend import ArraySource, DenseWeight, Device, DType, QuantizedWeight, Weight, WeightRole
from octavo.backend.tree import tree_map
from octavo_conformance.case import Needs
from octavo_conformance.cases.ops.operation import HostArray, numbers
from octavo_conformance.oracles.linear import HostWeight
from octavo_conformance.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Coding:
    """How a quantized weight is stored; the fields are those of QuantizedWeight.

    scales: dtype of scales, offsets and codebook. float8: the codes are float8 numbers, their own values.
    """

    bits: int
    group_size: int
    scales: DType
    offsets: bool = False
    codebook: bool = False
    permutation: bool = False
    float8: bool = False

    @property
    def name(self) -> str:
        """As it stands in case ids."""
        features = [name for name in ("offsets", "codebook", "permutation", "float8") if getattr(self, name)]
        return ",".join([f"bits={self.bits}", f"group={self.group_size}", f"scales={self.scales.value}", *features])

    def needs(self, dtype: DType) -> Needs:
        """What a device has to claim to compute with such a weight in `dtype`."""
        return Needs(dtypes=tuple(dict.fromkeys((dtype, self.scales))), quantized_bits=(self.bits,))


def codings(dtype: DType) -> Iterator[Coding]:
    """Every width, group size and feature, with scales in the compute dtype; and the scales that files come with."""
    for bits, group in ((2, 32), (3, 64), (4, 32), (5, 128), (6, 32), (8, 64)):
        yield Coding(bits, group, dtype, offsets=True)
    yield Coding(4, 128, dtype)
    yield Coding(8, 32, dtype)
    yield Coding(4, 64, dtype, codebook=True)
    yield Coding(3, 32, dtype, codebook=True, offsets=True)
    yield Coding(4, 32, dtype, offsets=True, permutation=True)
    yield Coding(8, 128, dtype, float8=True)
    for scales in (DType.FLOAT32, DType.FLOAT16):
        if scales is not dtype:
            yield Coding(4, 32, scales, offsets=True)


def dense(
    bench: Workbench, shape: Sequence[int], dtype: DType, bias: bool = False, scale: float = 1.0, shift: float = 0.0
) -> DenseWeight:
    """A matrix [..., out, in] and a bias [..., out] large enough to be missed."""
    return DenseWeight(numbers(bench, shape, dtype, scale, shift), _bias(bench, shape, dtype, scale) if bias else None)


def quantized(
    bench: Workbench, shape: Sequence[int], coding: Coding, bias: DType | None = None, scale: float = 1.0
) -> QuantizedWeight:
    """A matrix [..., out, in] of about `scale`, with every code in use.

    Zero points differ from group to group and lie near the middle of the codes: without them, or with the
    neighbouring group's, the matrix is another one. bias: its dtype.
    """
    out, size = shape[-2:]
    leading = tuple(shape[:-2])
    if size % coding.group_size:
        raise ValueError(f"{size} inputs do not divide into groups of {coding.group_size}.")
    grouped = (*leading, out, size // coding.group_size)
    codes: HostArray = bench.rng.integers(0, 2**coding.bits, (*leading, out, size)).astype(np.uint8)
    spread = 1.0 if coding.codebook or coding.float8 else 2.0**coding.bits / 4
    scales = (bench.rng.uniform(0.5, 1.5, grouped) * scale / spread).astype(coding.scales.numpy)
    offsets = None
    if coding.offsets:
        middle = 0.5 if coding.codebook else 2.0**coding.bits / 2
        zeros = middle * bench.rng.uniform(0.6, 1.4, grouped)
        offsets = (-zeros * scales.astype(np.float64)).astype(coding.scales.numpy)
    permutation = None
    if coding.permutation:
        orders = [bench.rng.permutation(size) for _ in range(int(np.prod(leading)))]
        permutation = np.reshape(orders, (*leading, size)).astype(np.int32)
    if coding.float8:
        codes = numbers(bench, (*leading, out, size), DType.FLOAT8_E4M3)
    elif coding.bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4  # the even input in the low nibble
    return QuantizedWeight(
        codes=codes,
        scales=scales,
        offsets=offsets,
        bits=coding.bits,
        group_size=coding.group_size,
        codebook=numbers(bench, (2**coding.bits,), coding.scales) if coding.codebook else None,
        permutation=permutation,
        bias=None if bias is None else _bias(bench, shape, bias, scale),
    )


def on_device(device: Device, weight: HostWeight, role: WeightRole) -> Weight:
    """The weight as the model's loader would have it: loaded or uploaded, then prepared for its role."""
    if isinstance(weight, DenseWeight):
        return device.prepare(tree_map(lambda array: _load(device, array), weight), role)
    return device.prepare(tree_map(lambda array: device.upload(array.copy()), weight), role)


def _load(device: Device, array: HostArray) -> object:
    return device.load(ArraySource("weight", array), DType.of(array))


def _bias(bench: Workbench, shape: Sequence[int], dtype: DType, scale: float) -> HostArray:
    return numbers(bench, shape[:-1], dtype, scale * float(np.sqrt(shape[-1])))
