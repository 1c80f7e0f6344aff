"""Integer probabilities, beyond conformance: the borders of parts, rows in company, temperatures at their limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.backend import Ops
from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.probability_units import cost, probability_units
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import Row, TuningTable

UNITS = 2**30
PART = 64
NUMPY_WARNS = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""Of NaN, and of products beyond float32, which the interpreter computes with NumPy."""

# Rows of some hundred entries have several parts here: what rows of a vocabulary go through, in less time.
SMALL = TuningTable({"probability_units": (Row((), {}, {}, {"part": PART}),)})
RUNTIME = KernelRuntime(Target("cuda", "sm_90", 32, 232448, 132, interpreted=True), SMALL)


def check(x: torch.Tensor, temperatures: torch.Tensor, runtime: KernelRuntime = RUNTIME) -> torch.Tensor:
    """As near to float64, and to the default, as the contract asks for."""
    units = probability_units(runtime, x, temperatures)
    assert (units.dtype, units.shape) == (torch.int32, x.shape)
    exact = UNITS * torch.softmax(x.double() / temperatures.double()[:, None], -1)
    assert ((units - exact).abs() <= 0.6 + 2e-6 * exact).all()
    assert ((units - Ops().probability_units(x, temperatures)).abs() <= 1 + 2e-6 * exact).all()
    return units


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n=st.one_of(st.integers(1, 5 * PART), st.sampled_from([PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1])),
    rows=st.integers(1, 4),
    masked=st.floats(0.0, 1.0),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    shift=st.sampled_from([-1e4, 0.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_units_are_next_to_the_probabilities(
    n: int, rows: int, masked: float, scale: float, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, n), generator=generator) * scale + shift
    x[:, 1:][torch.rand((rows, n - 1), generator=generator) < masked] = -torch.inf
    check(x, torch.logspace(-2, 2, rows))


@pytest.mark.parametrize("n", [PART, PART + 1, 3 * PART - 1, 3 * PART])
def test_one_entry_among_infinities_has_all_units_wherever_it_lies(n: int) -> None:
    places = sorted({0, PART - 1, min(PART, n - 1), n - 1})
    x = torch.full((len(places), n), -torch.inf)
    x[range(len(places)), places] = -7.0
    units = check(x, torch.full((len(places),), 0.3))
    assert torch.equal(units, UNITS * (x > -torch.inf).int())


def test_the_largest_entry_of_a_row_may_lie_in_any_of_its_parts() -> None:
    x = torch.randn((5, 5 * PART), generator=torch.Generator().manual_seed(0))
    x[range(5), range(PART // 2, 5 * PART, PART)] += 12.0
    units = check(x, torch.ones(5))
    assert units.argmax(-1).tolist() == list(range(PART // 2, 5 * PART, PART))


@pytest.mark.parametrize("n", [1, 50, PART, 777])
def test_a_row_is_the_same_bits_in_any_batch(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, temperatures = 3 * torch.randn((34, n), generator=generator), torch.rand(34, generator=generator) + 0.1
    among = check(x, temperatures)
    for rows in (slice(0, 1), slice(33, 34), slice(11, 20)):
        assert torch.equal(probability_units(RUNTIME, x[rows].clone(), temperatures[rows].clone()), among[rows])


@NUMPY_WARNS
def test_temperatures_may_be_as_low_and_as_high_as_requests_may_have_them(runtime: KernelRuntime) -> None:
    x = torch.tensor([[1.0, 1.0, 0.999, -torch.inf], [1.0, 1.0, 0.999, -torch.inf], [3.0, -3.0, 2.0, 1.0]])
    units = check(x, torch.tensor([1e-5, 1e-39, 1e30]), runtime)  # 1e-39: where its inverse is infinite
    assert units.tolist() == [[UNITS // 2, UNITS // 2, 0, 0]] * 2 + [[UNITS // 4] * 4]


@NUMPY_WARNS
def test_padding_rows_of_nan_leave_the_others_as_they_are() -> None:
    x = torch.randn((3, 200), generator=torch.Generator().manual_seed(4))
    alone = check(x, torch.ones(3))
    padded = torch.cat([x, torch.full((2, 200), torch.nan)])
    temperatures = torch.tensor([1.0, 1.0, 1.0, torch.nan, 0.0])
    assert torch.equal(probability_units(RUNTIME, padded, temperatures)[:3], alone)


def test_rows_may_be_slices_of_longer_ones(runtime: KernelRuntime) -> None:
    check(torch.randn((3, 300), generator=torch.Generator().manual_seed(5))[:, 20:257], torch.ones(3), runtime)


@pytest.mark.parametrize("rows", [1, 256])
def test_one_row_of_a_vocabulary_keeps_many_programs_busy_and_hundreds_are_cut_alike(
    runtime: KernelRuntime, rows: int
) -> None:
    recorder = Recorder()
    x, temperatures = torch.empty((rows, 128256), device="meta"), torch.empty((rows,), device="meta")
    probability_units(KernelRuntime(runtime.target, runtime.tuning, recorder), x, temperatures)
    summed, written = recorder.launches
    assert summed.grid == written.grid == (rows * 63,)
    assert {summed.arguments["PART"], written.arguments["PART"]} == {2048}
    between = summed.arguments["maxima"].nbytes + summed.arguments["sums"].nbytes
    assert between <= cost(rows, 128256).written / 1000
