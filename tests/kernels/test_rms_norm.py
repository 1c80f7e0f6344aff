"""The norm of heads that lie in a fused projection, beyond conformance."""

from __future__ import annotations

import pytest
import torch

from octavo.backend import array_ops
from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.rms_norm import rms_norm
from octavo_torch.kernels.tuning import Row, TuningTable

FOUR_ROWS = TuningTable({"rms_norm": (Row((), {}, {}, {"rows": 4}),)})


@pytest.mark.parametrize("heads", [slice(0, 6), slice(6, 8), slice(8, 9)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_heads_of_a_fused_projection_are_normed_where_they_lie(
    runtime: KernelRuntime, heads: slice, with_residual: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, 9, 56), generator=generator)[:, heads, :40]
    weight = torch.randn((40,), generator=generator)
    residual = torch.randn(x.shape, generator=generator) if with_residual else None
    normed, total = rms_norm(KernelRuntime(runtime.target, FOUR_ROWS), x, weight, 1e-5, residual)
    expected, sum_ = array_ops.rms_norm(x, weight, 1e-5, residual)
    torch.testing.assert_close(normed, expected)
    assert torch.equal(total, sum_)


def test_nothing_is_copied(runtime: KernelRuntime) -> None:
    recorder = Recorder()
    x = torch.zeros((5, 9, 40))[:, 2:8]
    rms_norm(KernelRuntime(runtime.target, runtime.tuning, recorder), x, torch.ones(40), 1e-5, None)
    (launch,) = recorder.launches
    assert launch.arguments["x"].data_ptr() == x.data_ptr()
