"""GGUF's block formats are QuantizedWeights: the same numbers as the gguf package, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from octavo.backend import QuantizedWeight
from octavo.backend.array_ops import dequantize

ROWS, COLUMNS = 3, 512
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def blocks_of(kind: GGMLQuantizationType) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks of a format, uint8 [rows, blocks, bytes], and the matrix the gguf package reads from them."""
    rng = np.random.default_rng(int(kind))
    size, length = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (ROWS, COLUMNS // size, length), dtype=np.uint8)
    halves = np.abs(rng.standard_normal((ROWS, COLUMNS // size, 2))).astype(np.float16).view(np.uint8)
    where = {GGMLQuantizationType.Q6_K: 208}.get(kind, 0)
    count = 4 if kind in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q4_K) else 2
    raw[..., where : where + count] = halves[..., :count]  # random bytes would make infinite scales
    return raw, quants.dequantize(raw.reshape(ROWS, -1), kind)


def half(raw: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block, as float32 [rows, blocks]."""
    return np.ascontiguousarray(raw[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)


def nibbles(data: np.ndarray) -> np.ndarray:
    """Low nibbles of a run of bytes, then its high ones."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def pack(codes: np.ndarray) -> np.ndarray:
    codes = codes.reshape(ROWS, -1)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def q4_0(raw: np.ndarray) -> QuantizedWeight:
    scale = half(raw, 0)
    return QuantizedWeight(pack(nibbles(raw[..., 2:])), scale, -8 * scale, 4, 32)


def q4_1(raw: np.ndarray) -> QuantizedWeight:
    return QuantizedWeight(pack(nibbles(raw[..., 4:])), half(raw, 0), half(raw, 2), 4, 32)


def q8_0(raw: np.ndarray) -> QuantizedWeight:
    scale = half(raw, 0)
    codes = (raw[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    return QuantizedWeight(codes.reshape(ROWS, -1), scale, -128 * scale, 8, 32)


def q4_k(raw: np.ndarray) -> QuantizedWeight:
    packed = raw[..., 4:16]  # 8 scales and 8 minima of 6 bits each in 12 bytes
    low, middle, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], axis=-1)
    codes = nibbles(raw[..., 16:].reshape(*raw.shape[:2], 4, 32))
    scales = half(raw, 0)[..., None] * scales.astype(np.float32)
    offsets = -half(raw, 2)[..., None] * minima.astype(np.float32)
    return QuantizedWeight(pack(codes), scales.reshape(ROWS, -1), offsets.reshape(ROWS, -1), 4, 32)


def q6_k(raw: np.ndarray) -> QuantizedWeight:
    low, high = (
        raw[..., :128].reshape(*raw.shape[:2], 2, 64),
        raw[..., 128:192].reshape(*raw.shape[:2], 2, 1, 32),
    )
    tops = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    codes = nibbles(low).reshape(*raw.shape[:2], 2, 4, 32) | tops << 4
    scales = half(raw, 208)[..., None] * raw[..., 192:208].view(np.int8).astype(np.float32)
    scales = scales.reshape(ROWS, -1)
    return QuantizedWeight(codes.reshape(ROWS, -1), scales, -32 * scales, 6, 16)


def iq4_nl(raw: np.ndarray) -> QuantizedWeight:
    return QuantizedWeight(pack(nibbles(raw[..., 2:])), half(raw, 0), None, 4, 32, codebook=IQ4_NL)


FORMATS = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0, "Q4_K": q4_k, "IQ4_NL": iq4_nl}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_maps_exactly(library, name):
    raw, expected = blocks_of(GGMLQuantizationType[name])
    weight = library.put(FORMATS[name](raw))
    np.testing.assert_array_equal(library.get(dequantize(weight)), expected)


def test_q6_k_maps_to_the_last_bit_but_one(library):
    """Its products take 25 bits, one more than float32 has, and the offset is added after they are rounded."""
    raw, expected = blocks_of(GGMLQuantizationType.Q6_K)
    result = library.get(dequantize(library.put(q6_k(raw))))
    largest = np.abs(q6_k(raw).scales).max() * 63
    np.testing.assert_allclose(result, expected, rtol=0, atol=largest * 2**-23)
