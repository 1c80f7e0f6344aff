"""Gated activations, beyond conformance: numbers at the ends of float32, and rows that are slices."""

from __future__ import annotations

import pytest
import torch

from octavo.backend import Activation
from octavo_torch.kernels.gated_activation import gated_activation
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.tuning import Row, TuningTable
from octavo_torch.ops import TorchOps


@pytest.mark.parametrize("kind", Activation)
def test_gates_of_any_size_give_their_limit(runtime: KernelRuntime, kind: Activation) -> None:
    """Beyond +-20 each activation is 0 or the gate itself, to float32's precision of either."""
    sizes = torch.tensor([20.0, 88.0, 89.0, 104.0, 3e4, 1e12])
    gates = torch.stack([sizes, -sizes])
    result = gated_activation(runtime, torch.cat([gates, torch.ones_like(gates)], -1), kind)
    torch.testing.assert_close(result, gates.clamp(min=0.0), rtol=1e-6, atol=5e-8)


@pytest.mark.parametrize("kind", Activation)
def test_a_gate_that_is_nan_shows_in_its_own_result_only(runtime: KernelRuntime, kind: Activation) -> None:
    x = torch.ones((3, 12))
    x[1, 2] = torch.nan
    wrong = gated_activation(runtime, x, kind).isnan()
    assert wrong.nonzero().tolist() == [[1, 2]]


def test_rows_of_several_programs_and_of_a_larger_array(runtime: KernelRuntime) -> None:
    table = TuningTable({"gated_activation": (Row((), {}, {}, {"columns": 16}),)})
    x = torch.randn((4, 2, 78), generator=torch.Generator().manual_seed(0))[:, 1]
    result = gated_activation(KernelRuntime(runtime.target, table), x, Activation.SILU)
    torch.testing.assert_close(result, TorchOps().gated_activation(x, Activation.SILU))
