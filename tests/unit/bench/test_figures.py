"""Medians, spread, and bytes read, against figures worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo_server.bench.summary import Summary
from octavo_server.bench.throughput import bytes_read
from octavo_server.bench.workload import Workload, WorkloadRequest


def test_summary_of_known_values() -> None:
    summary = Summary.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (summary.count, summary.median, summary.smallest, summary.largest) == (5, 3.0, 1.0, 5.0)
    assert summary.p95 == pytest.approx(4.8)
    assert summary.spread == pytest.approx(4 / 3)
    assert Summary.of([1.0, 2.0]).median == 1.5


def test_summary_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Summary.of([])


def test_bytes_read_are_weights_a_step_and_context_a_token() -> None:
    # 3 blocks and the null block of 16 tokens in 640 bytes: 10 bytes a token.
    info: Any = SimpleNamespace(kv_cache_bytes=640, num_blocks=3, block_size=16, weights_bytes=1000)
    workload = Workload((WorkloadRequest((1, 2, 3, 4, 5), 3), WorkloadRequest((1, 2), 1)), 0)
    # The first request reads contexts of 5 (prefill), 6 and 7 tokens; the second one of 2.
    assert bytes_read(info, workload, steps=4) == 4 * 1000 + (5 + 6 + 7 + 2) * 10
