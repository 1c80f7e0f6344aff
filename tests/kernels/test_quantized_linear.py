"""Quantized linear layers, beyond conformance: formats it has no case for, packing, and what is around a matrix."""

from __future__ import annotations

import pytest
import torch

from octavo.backend import QuantizedWeight, array_ops
from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.quantized_linear import PackedQuantizedWeight, embedding, pack, quantized_linear
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import Row, TuningTable


def quantized(
    bits: int, group_size: int, out: int, inputs: int, float8: torch.dtype | None = None, seed: int = 0
) -> QuantizedWeight:
    """A matrix of about 1, with offsets where codes are integers and every code in use."""
    generator = torch.Generator().manual_seed(seed)
    groups = inputs // group_size
    scales = (torch.rand((out, groups), generator=generator) + 0.5) * 2.0 ** (2 - bits)
    if float8 is not None:
        codes = torch.randn((out, inputs), generator=generator).to(float8)
        return QuantizedWeight(codes, scales * 2.0 ** (bits - 2), None, 8, group_size)
    codes = torch.randint(0, 1 << bits, (out, inputs), generator=generator, dtype=torch.uint8)
    offsets = -scales * ((1 << bits) * (0.3 + 0.4 * torch.rand((out, groups), generator=generator)))
    if bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return QuantizedWeight(codes, scales, offsets, bits, group_size)


def packed(weight: QuantizedWeight) -> PackedQuantizedWeight:
    result = pack(weight)
    assert isinstance(result, PackedQuantizedWeight)
    return result


def numbers(rows: int, columns: int) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("bits", "group_size", "inputs", "float8"),
    [
        (6, 16, 272, None),  # GGUF's K-quants, and a last tile that is not full
        (4, 48, 240, None),  # no power of two
        (4, 560, 560, None),  # one scale a row
        (8, 64, 192, None),
        (2, 16, 256, None),
        (8, 128, 256, torch.float8_e5m2),
    ],
)
def test_formats_give_what_the_reference_gives(
    runtime: KernelRuntime, bits: int, group_size: int, inputs: int, float8: torch.dtype | None
) -> None:
    weight = quantized(bits, group_size, 37, inputs, float8)
    x = numbers(5, inputs)
    torch.testing.assert_close(
        quantized_linear(runtime, x, packed(weight)), array_ops.linear(x, weight), rtol=1e-4, atol=1e-4
    )
    ids = torch.tensor([36, 0, 5], dtype=torch.int32)
    torch.testing.assert_close(embedding(ids, packed(weight)), array_ops.embedding(ids, weight), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_number_is_exact(runtime: KernelRuntime, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every[torch.isfinite(every.float())]
    codes = torch.zeros((1, 256), dtype=dtype)
    codes[0, : len(finite)] = finite
    weight = QuantizedWeight(codes, torch.ones((1, 1)), None, 8, 256)
    result = quantized_linear(runtime, torch.eye(256), packed(weight))
    assert torch.equal(result[:, 0], codes[0].float())


def test_the_result_is_the_same_however_the_inputs_are_split() -> None:
    target = Target("cuda", "sm_90", 32, 232448, processors=4, interpreted=True)
    weight, x = packed(quantized(4, 16, 16, 1040)), numbers(3, 1040)
    results, splits = [], []
    for programs in (0, 1, 2, 100):
        table = TuningTable({"quantized_linear": (Row((), {}, {}, {"programs": programs, "block_out": 16}),)})
        recorder = Recorder()
        quantized_linear(KernelRuntime(target, table, recorder), x.to("meta"), _on_meta(weight))
        splits.append(recorder.launches[0].grid[2])
        results.append(quantized_linear(KernelRuntime(target, table), x, weight))
    assert splits == [1, 3, 5, 9]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


def test_what_lies_beside_a_row_of_x_is_not_read(runtime: KernelRuntime) -> None:
    weight = packed(quantized(4, 16, 20, 80))  # one tile of 128 inputs
    wide = torch.full((4, 200), torch.nan)
    wide[:, 16:96] = numbers(4, 80)
    x = wide[:, 16:96]
    assert torch.equal(quantized_linear(runtime, x, weight), quantized_linear(runtime, x.contiguous(), weight))


def test_a_row_of_nan_harms_no_other(runtime: KernelRuntime) -> None:
    weight, x = packed(quantized(4, 32, 20, 256)), numbers(4, 256)
    expected = quantized_linear(runtime, x, weight)
    x[2] = torch.nan
    kept = [0, 1, 3]
    assert torch.equal(quantized_linear(runtime, x, weight)[kept], expected[kept])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_of_up_to_four_bits_take_half_a_byte(bits: int) -> None:
    assert packed(quantized(bits, 32, 64, 1024)).words.nbytes == 64 * 1024 // 2


def test_packing_needs_no_values() -> None:
    weight = quantized(4, 32, 64, 1024)
    known, unknown = packed(weight), packed(_quantized_on_meta(weight))
    assert unknown.words.shape == known.words.shape
    assert (unknown.span, unknown.run, unknown.padded) == (known.span, known.run, known.padded)


def test_groups_that_the_matrix_units_cannot_take_are_left_to_the_reference() -> None:
    weight = quantized(8, 24, 8, 48)
    assert pack(weight) is weight


def _on_meta(weight: PackedQuantizedWeight) -> PackedQuantizedWeight:
    return packed(_quantized_on_meta(quantized(4, 16, weight.out, weight.inputs)))


def _quantized_on_meta(weight: QuantizedWeight) -> QuantizedWeight:
    assert weight.offsets is not None
    return QuantizedWeight(
        weight.codes.to("meta"), weight.scales.to("meta"), weight.offsets.to("meta"), weight.bits, weight.group_size
    )
