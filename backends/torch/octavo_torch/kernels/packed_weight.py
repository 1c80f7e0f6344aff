"""A quantized weight in the order in which the kernels read it, and its rows as an embedding.

The codes of an output lie in 32-bit words: eight codes of up to four bits, or four of up to eight. A tile is SPAN words
of every output, and the same place in all of its words belongs to neighbouring inputs:

    tile 0                                                       tile 1
    word:   place 0 holds input  place 1 holds input  ...
    0       0                    span                           span * places + 0       ...
    1       1                    span + 1
    ...
    span-1  span - 1             2 * span - 1

So one place of a tile, decoded, is a matrix [out, span] of neighbouring inputs: an operand for the matrix units that no
value has to be moved for. Span divides the group size, and all of such a matrix's columns have one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import gcd

import torch

from octavo.backend import QuantizedWeight

WORD = 32
"""Bits of a word."""


class Coding(Enum):
    """What a code stands for."""

    INTEGER = 0  # itself
    FLOAT8_E4M3 = 1
    FLOAT8_E5M2 = 2
    CODEBOOK = 3  # an index into a table


@dataclass(frozen=True, slots=True)
class PackedQuantizedWeight:
    """A quantized matrix [out, in] (see `QuantizedWeight`), the only copy of it.

    words: int32 [tiles, out, span], codes of 0 where the last tile reaches past the inputs.
    scales: float [in / group_size, out], in the dtype it came in. offsets: the same, or None.
    codebook: float [at least 2**width] or None. permutation: int32 [in] or None. bias: float [out] or None.
    width: bits of a place in a word, 4 or 8. inputs: the matrix's columns.
    All arrays but codebook may carry a leading [experts] axis.
    """

    words: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    codebook: torch.Tensor | None
    permutation: torch.Tensor | None
    bias: torch.Tensor | None
    coding: Coding
    width: int
    group_size: int
    inputs: int

    @property
    def out(self) -> int:
        return self.words.shape[-2]

    @property
    def tiles(self) -> int:
        return self.words.shape[-3]

    @property
    def span(self) -> int:
        return self.words.shape[-1]

    @property
    def places(self) -> int:
        """Codes of a word."""
        return WORD // self.width

    @property
    def run(self) -> int:
        """Places next to each other that always share their scale."""
        return gcd(self.group_size // self.span, self.places)

    @property
    def padded(self) -> bool:
        """Whether the last tile reaches past the inputs."""
        return self.tiles * self.places * self.span > self.inputs

    @property
    def nbytes(self) -> int:
        arrays = (self.words, self.scales, self.offsets, self.codebook, self.permutation, self.bias)
        return sum(array.nbytes for array in arrays if array is not None)


def pack(weight: QuantizedWeight) -> PackedQuantizedWeight | QuantizedWeight:
    """The weight in the kernels' order, on its own device; as it is where groups are no multiple of 16 inputs.

    The kernels' smallest span is 16, the least that matrix units multiply: other groups are left to the reference.
    """
    if weight.group_size % 16:
        return weight
    coding, codes = _codes(weight)
    width = 4 if weight.bits <= 4 else 8
    places = WORD // width
    inputs = codes.shape[-1]
    # The longer span needs fewer and wider loads of x; a half-empty last tile would cost more than they do.
    span = 32 if weight.group_size % 32 == 0 and inputs % (32 * places) == 0 else 16
    tiles = -(-inputs // (span * places))
    padded = torch.nn.functional.pad(codes, (0, tiles * span * places - inputs))
    grid = padded.unflatten(-1, (tiles, places, span))  # [..., out, tiles, places, span]
    words = torch.zeros((*codes.shape[:-1], tiles, span), dtype=torch.int32, device=codes.device)
    for place in range(places):
        words |= grid[..., place, :].int() << (width * place)
    return PackedQuantizedWeight(
        words=words.transpose(-2, -3).contiguous(),
        scales=weight.scales.transpose(-1, -2).contiguous(),
        offsets=None if weight.offsets is None else weight.offsets.transpose(-1, -2).contiguous(),
        codebook=weight.codebook,
        permutation=weight.permutation,
        bias=weight.bias,
        coding=coding,
        width=width,
        group_size=weight.group_size,
        inputs=inputs,
    )


def embedding(ids: torch.Tensor, weight: PackedQuantizedWeight) -> torch.Tensor:
    """`Ops.embedding` on a packed table. ids int32 [tokens] -> [tokens, in], in the dtype of the scales."""
    words = weight.words.index_select(1, ids)  # [tiles, tokens, span]
    mask = (1 << weight.width) - 1
    places = [(words >> (weight.width * place)) & mask for place in range(weight.places)]
    codes = torch.stack(places, dim=2)  # [tiles, tokens, places, span]
    values = _values(codes.transpose(0, 1).flatten(1)[:, : weight.inputs], weight)
    groups = values.unflatten(1, (-1, weight.group_size))
    rows: torch.Tensor = groups * weight.scales.index_select(1, ids).t()[..., None].float()
    if weight.offsets is not None:
        rows = rows + weight.offsets.index_select(1, ids).t()[..., None].float()
    rows = rows.flatten(1).to(weight.scales.dtype)
    if weight.permutation is not None:
        rows = torch.empty_like(rows).index_copy_(1, weight.permutation.long(), rows)
    return rows


def _codes(weight: QuantizedWeight) -> tuple[Coding, torch.Tensor]:
    """What the codes are, and the codes themselves: uint8 [..., out, in]."""
    codes = weight.codes
    if codes.dtype == torch.float8_e4m3fn:
        return Coding.FLOAT8_E4M3, codes.view(torch.uint8)
    if codes.dtype == torch.float8_e5m2:
        return Coding.FLOAT8_E5M2, codes.view(torch.uint8)
    if weight.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return (Coding.INTEGER if weight.codebook is None else Coding.CODEBOOK), codes


def _values(codes: torch.Tensor, weight: PackedQuantizedWeight) -> torch.Tensor:
    """What codes stand for, float32."""
    match weight.coding:
        case Coding.FLOAT8_E4M3:
            return codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
        case Coding.FLOAT8_E5M2:
            return codes.to(torch.uint8).view(torch.float8_e5m2).float()
        case Coding.CODEBOOK:
            assert weight.codebook is not None
            table: torch.Tensor = weight.codebook.float()
            return table[codes]
        case Coding.INTEGER:
            return codes.float()
