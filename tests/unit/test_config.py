"""Engine options out of range are refused with a sentence; sizes are read as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config import EngineConfig, parse_bytes
from octavo.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be an integer of at least 1, and is 0"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "the largest max_num_seqs that fits is 32"),
        ({"max_model_len": -5}, "max_model_len must be an integer of at least 1"),
        ({"block_size": True}, "block_size must be an integer"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must be greater than 0 and at most 1"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization must be greater than 0 and at most 1"),
        ({"kv_cache_memory": "lots"}, "a size such as 512MiB or 2GB, and got 'lots'"),
        ({"warm_up_seconds": -1}, "warm_up_seconds must be a number of seconds of at least 0, and is -1"),
        ({"warm_up_seconds": float("nan")}, "at least 0, and is nan"),
        ({"kv_cache_memory": 0}, "kv_cache_memory must be at least one byte"),
    ],
)
def test_an_option_out_of_range_is_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("text", "size"),
    [(4096, 4096), ("4096", 4096), ("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5g", 3 << 29), ("64 kib", 65536)],
)
def test_sizes_are_bytes_with_units(text: int | str, size: int) -> None:
    assert parse_bytes("x", text) == size
