"""Entries of the KV cache dtypes that carry a scale: eight bits each, float8 or int8.

The bits are made by integer arithmetic: sm_80 has no float8_e4m3fn, gfx90a neither of the two, and Triton's interpreter
rounds them wrongly. So a cache of eight bits is bytes to the kernel that writes it, alike on every target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class Format:
    """A number of eight bits. mantissa: its bits, 0 for an integer. largest: the largest finite number."""

    mantissa: int
    largest: float


FORMATS: Mapping[torch.dtype, Format] = MappingProxyType(
    {
        torch.float8_e4m3fn: Format(mantissa=3, largest=448.0),
        torch.float8_e5m2: Format(mantissa=2, largest=57344.0),
        torch.int8: Format(mantissa=0, largest=127.0),
    }
)
"""Of the dtypes that `kv.SCALED` names."""


@triton.jit
def scale_of(largest_entry, LARGEST: tl.constexpr):
    """The scale that brings a head's largest absolute entry, float32, to LARGEST, and its inverse.

    An entry that is not finite makes the scale NaN: whoever reads the head sees it. A head of zeros gets scale 1, and
    so does one whose entries are so small that the inverse would not be finite: it is stored as zeros.
    """
    finite = largest_entry < float("inf")
    scalable = finite & (largest_entry > 1e-30)
    safe = tl.where(scalable, largest_entry, LARGEST)
    return tl.where(finite, safe / LARGEST, float("nan")), LARGEST / safe


@triton.jit
def encoded(x, MANTISSA: tl.constexpr, LARGEST: tl.constexpr):
    """Float32 within -LARGEST .. LARGEST to the nearest number of the format, among equals the even one; as uint8.

    float8_e4m3fn and float8_e5m2 (Micikevicius et al. 2022) have a sign, 7 - MANTISSA bits of exponent and MANTISSA
    bits. Rounding drops the lower bits of the float32 mantissa, a carry running into the exponent as it should. Numbers
    below the format's normal ones are a multiple of its smallest: so is what an addition leaves of them where float32's
    own last bit is worth as much.
    """
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    if MANTISSA == 0:
        shifted = x + 12582912.0  # 1.5 * 2^23: the last bit of the sum is worth 1
        return (shifted.to(tl.int32, bitcast=True) & 0xFF).to(tl.uint8)
    dropped: tl.constexpr = 23 - MANTISSA
    bias: tl.constexpr = 2 ** (6 - MANTISSA) - 1
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = (size + (2 ** (dropped - 1) - 1) + ((size >> dropped) & 1)) >> dropped
    normal = normal - ((127 - bias) << MANTISSA)
    anchor: tl.constexpr = 2.0 ** (24 - bias - MANTISSA)
    tiny = (size.to(tl.float32, bitcast=True) + anchor).to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(size < ((128 - bias) << 23), tiny, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
