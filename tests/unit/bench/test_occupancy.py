"""The arithmetic of waste, against cases small enough to count by hand."""

from __future__ import annotations

import pytest

from octavo_server.bench.occupancy import (
    Occupancy,
    Reservation,
    Sample,
    by_running,
    paged_slots,
    reserved,
    sharing_saves,
)
from octavo_server.bench.workload import WorkloadRequest


def _request(prompt: int, output: int) -> WorkloadRequest:
    return WorkloadRequest(tuple(range(prompt)), output)


def test_waste_is_the_part_of_the_slots_without_a_token() -> None:
    assert Sample(1, allocated_slots=32, used_slots=24).waste == 0.25
    assert Sample(0, allocated_slots=0, used_slots=0).waste == 0.0


def test_blocks_are_counted_whole() -> None:
    assert [paged_slots(tokens, 16) for tokens in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_mean_counts_steps_alike_and_overall_counts_slots_alike() -> None:
    samples = [Sample(1, 16, 8), Sample(2, 48, 48), Sample(0, 0, 0)]
    occupancy = Occupancy.of(samples)
    assert occupancy.steps == 2  # an empty cache wastes nothing and says nothing
    assert occupancy.mean == 0.25
    assert occupancy.largest == 0.5
    assert occupancy.overall == 1 - 56 / 64
    assert occupancy.peak_slots == 48


def test_occupancy_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="allocated"):
        Occupancy.of([Sample(0, 0, 0)])


def test_contiguous_allocators_reserve_what_the_paper_says() -> None:
    request = _request(prompt=10, output=25)
    assert Reservation.LONGEST.slots(request, 2048) == 2048
    assert Reservation.POWER_OF_TWO.slots(request, 2048) == 10 + 32
    assert Reservation.TRUE_LENGTH.slots(request, 2048) == 10 + 25 - 1  # the last token is never stored
    assert Reservation.POWER_OF_TWO.slots(_request(10, 32), 2048) == 10 + 32
    assert Reservation.POWER_OF_TWO.slots(_request(10, 25), 40) == 40


def test_contiguous_waste_against_a_hand_made_step() -> None:
    running = (_request(10, 7), _request(20, 5))  # final lengths in the cache: 16 and 24
    sample = Sample(running=2, allocated_slots=48, used_slots=30)
    (longest,) = reserved([(sample, running)], Reservation.LONGEST, 100)
    (exact,) = reserved([(sample, running)], Reservation.TRUE_LENGTH, 100)
    assert (longest.allocated_slots, longest.waste) == (200, 1 - 30 / 200)
    assert (exact.allocated_slots, exact.waste) == (40, 0.25)


def test_waste_is_grouped_by_running_sequences() -> None:
    samples = [Sample(2, 32, 16), Sample(1, 16, 16), Sample(2, 32, 32)]
    assert by_running(samples) == {1: 0.0, 2: 0.25}


def test_sharing_is_compared_only_where_both_sides_are_known() -> None:
    samples = [Sample(4, 64, 60, unshared_slots=128), Sample(5, 1000, 900, unshared_slots=None)]
    assert sharing_saves(samples) == 0.5
    assert sharing_saves([]) == 0.0
