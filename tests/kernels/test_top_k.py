"""Top-k, beyond conformance: rows around the sizes at which the method changes, in the order of a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.top_k import BRANCHES, LARGEST_K, top_k
from octavo_torch.kernels.tuning import Row, TuningTable

# Rows of 64 entries are long ones here: everything that rows of a vocabulary go through, in less time.
SMALL = TuningTable({"top_k": (Row((), {}, {}, {"entries": 64, "tile": 512}),)})
RUNTIME = KernelRuntime(Target("cuda", "sm_90", 32, 232448, 132, interpreted=True), SMALL)


def expected(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Falling entries, equal ones from the left."""
    order = (x + 0.0).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return x.gather(-1, order), order.int()


def check(runtime: KernelRuntime, x: torch.Tensor, k: int) -> None:
    values, indices = top_k(runtime, x, k)
    for got, wanted in zip((values, indices), expected(x, k), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n=st.one_of(st.integers(1, 70), st.integers(500, 530), st.integers(1020, 1030)),
    rows=st.integers(1, 4),
    share=st.floats(0.0, 1.0),
    distinct=st.sampled_from([1, 2, 5, 1000]),
    masked=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_order_is_that_of_a_stable_sort(
    n: int, rows: int, share: float, distinct: int, masked: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randint(-distinct, distinct, (rows, n), generator=generator) / 7).to(dtype)
    x[torch.rand((rows, n), generator=generator) < masked] = -torch.inf
    check(RUNTIME, x, 1 + int(share * (min(n, LARGEST_K) - 1)))


@pytest.mark.parametrize("k", [1, 20, 64])
@pytest.mark.parametrize("largest_at", ["left", "right", "one group", "one of each group"])
def test_the_largest_entries_of_a_vocabulary_are_found_wherever_they_lie(
    runtime: KernelRuntime, k: int, largest_at: str
) -> None:
    x = torch.randn((1, 9000), generator=torch.Generator().manual_seed(k))
    at = {
        "left": slice(0, k),
        "right": slice(9000 - k, 9000),
        "one group": slice(BRANCHES * 100, BRANCHES * 100 + k),
        "one of each group": slice(5, 5 + BRANCHES * k, BRANCHES),
    }[largest_at]
    x[:, at] = x[:, at].abs() + 9.0
    check(runtime, x, k)


def test_nan_shows_and_every_index_lies_in_the_row(runtime: KernelRuntime) -> None:
    x = torch.zeros((3, 1500))
    x[0] = torch.nan
    x[1, 700] = -torch.nan
    x[1, 900] = torch.inf
    values, indices = top_k(runtime, x, 3)
    assert indices.tolist() == [[0, 1, 2], [700, 900, 0], [0, 1, 2]]
    assert values[0].isnan().all()
    assert values[1, 0].isnan()
    assert values[2].tolist() == [0.0, 0.0, 0.0]


def test_zeros_keep_their_signs_and_count_as_equal(runtime: KernelRuntime) -> None:
    x = torch.tensor([[-0.0, 0.0, -0.0, -1.0, 0.0]])
    values, indices = top_k(runtime, x, 4)
    assert indices.tolist() == [[0, 1, 2, 4]]
    assert values.signbit().tolist() == [[True, False, True, False]]


def test_rows_may_be_slices_of_longer_ones(runtime: KernelRuntime) -> None:
    x = torch.randn((7, 64), generator=torch.Generator().manual_seed(1))[:, 8:39]
    check(runtime, x, 5)


def test_a_larger_k_is_left_to_a_sort(runtime: KernelRuntime) -> None:
    recorder = Recorder()
    x = torch.randint(-3, 4, (2, 300), generator=torch.Generator().manual_seed(2)).float()
    check(KernelRuntime(runtime.target, runtime.tuning, recorder), x, LARGEST_K + 1)
    assert not recorder.launches


def test_a_vocabulary_is_read_by_many_programs_and_needs_a_fifteenth_of_its_size(runtime: KernelRuntime) -> None:
    recorder = Recorder()
    x = torch.empty((256, 128256), device="meta")
    top_k(KernelRuntime(runtime.target, runtime.tuning, recorder), x, 64)
    read, choice = recorder.launches
    assert read.grid[0] >= 256 * 16
    assert choice.grid == (256,)
    workspace = read.arguments["groups"].nbytes + read.arguments["supergroups"].nbytes
    assert workspace <= x.nbytes / 15 + 256 * 8
