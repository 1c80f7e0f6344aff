"""Rows in groups: the order is that of a stable sort, and tiles cover it."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.row_groups import CHUNK, count_rows, group_rows
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import TuningTable

RUNTIME = KernelRuntime(Target("cuda", "sm_90", 32, 232448, 132, interpreted=True), TuningTable())


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.one_of(st.integers(1, 40), st.integers(120, 140), st.integers(2100, 2200)),
    groups=st.integers(1, 70),
    distinct=st.integers(1, 70),
    block=st.sampled_from([16, 32, 128]),
    seed=st.integers(0, 99),
)
def test_tiles_cover_the_rows_of_each_group_in_their_order(
    rows: int, groups: int, distinct: int, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, min(groups, distinct), (rows,), generator=generator, dtype=torch.int32)
    found = group_rows(RUNTIME, ids, count_rows(RUNTIME, ids, groups), CHUNK, block)

    group = torch.where(ids < 0, groups - 1, ids)
    assert torch.equal(found.order.long(), torch.argsort(group, stable=True))
    expected, place = [], 0
    for number in range(groups):
        size = int((group == number).sum())
        expected += [[number, place + start, min(block, size - start)] for start in range(0, size, block)]
        place += size
    used = int(found.used)
    assert used <= found.most
    assert found.tiles[:used].tolist() == expected
