"""Mixture of experts, beyond conformance: large tiles, odd routers, weights it does not take."""

from __future__ import annotations

import pytest
import torch

from octavo.backend import DenseWeight, ExpertWeights, Ops, QuantizedWeight, array_ops
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.mixture_of_experts import mixture_of_experts, takes
from octavo_torch.kernels.mixture_of_experts.router import route
from octavo_torch.kernels.quantized_linear import pack


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def experts(count: int, hidden: int, intermediate: int) -> ExpertWeights:
    return ExpertWeights(
        DenseWeight(numbers(count, 2 * intermediate, hidden, seed=1) * hidden**-0.5),
        DenseWeight(numbers(count, hidden, intermediate, seed=2) * intermediate**-0.5),
    )


def int4(count: int, out: int, inputs: int, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (count, out, inputs // 2), generator=generator, dtype=torch.uint8)
    scales = (torch.rand((count, out, inputs // 16), generator=generator) + 0.5) * 0.2 * inputs**-0.5
    return QuantizedWeight(codes, scales, -7.5 * scales, 4, 16)


@pytest.mark.parametrize("tokens", [40, 140])  # tiles of 64 rows that are not full, and several of an expert
def test_a_prefill_gives_what_the_reference_gives(runtime: KernelRuntime, tokens: int) -> None:
    weights, x, logits = experts(3, 40, 24), numbers(tokens, 40), numbers(tokens, 3, seed=3)
    result = mixture_of_experts(runtime, x, logits, weights, 2)
    torch.testing.assert_close(result, array_ops.mixture_of_experts(Ops(), x, logits, weights, 2), rtol=1e-4, atol=1e-4)


def test_matrices_may_be_quantized_and_not(runtime: KernelRuntime) -> None:
    weights = experts(4, 64, 48)
    quantized = int4(4, 64, 48, seed=4)
    x, logits = numbers(5, 64), numbers(5, 4, seed=3)
    mixed = ExpertWeights(weights.gate_up, pack(quantized))
    assert takes(x, mixed)
    expected = array_ops.mixture_of_experts(Ops(), x, logits, ExpertWeights(weights.gate_up, quantized), 2)
    torch.testing.assert_close(mixture_of_experts(runtime, x, logits, mixed, 2), expected, rtol=1e-4, atol=1e-4)


def test_experts_that_are_masked_out_are_chosen_once_each_and_last(runtime: KernelRuntime) -> None:
    logits = torch.full((2, 6), -torch.inf)
    logits[0, 4] = 1.0
    found = route(runtime, logits, 3, renormalize=False)
    assert found.experts.view(2, 3).tolist() == [[4, 0, 1], [0, 1, 2]]
    assert found.shares.view(2, 3)[0].tolist() == [1.0, 0.0, 0.0]
    assert found.counts.sum(0).tolist() == [2, 2, 1, 0, 1, 0]


def test_a_row_of_nan_is_routed_somewhere_and_harms_no_other(runtime: KernelRuntime) -> None:
    weights, x, logits = experts(4, 40, 24), numbers(5, 40), numbers(5, 4, seed=3)
    expected = mixture_of_experts(runtime, x, logits, weights, 2)
    x[1], logits[1] = torch.nan, torch.nan
    kept = [0, 2, 3, 4]
    assert torch.equal(mixture_of_experts(runtime, x, logits, weights, 2)[kept], expected[kept])


def test_other_weights_are_not_taken(runtime: KernelRuntime) -> None:
    x, weights = numbers(2, 64), experts(4, 64, 48)
    assert takes(x, weights)
    assert not takes(x.bfloat16(), weights)
    unpacked = ExpertWeights(weights.gate_up, int4(4, 64, 48, seed=4))
    assert not takes(x, unpacked)
    with pytest.raises(TypeError, match="not QuantizedWeight"):
        mixture_of_experts(runtime, x, numbers(2, 4), unpacked, 2)
