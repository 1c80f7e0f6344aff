"""The example held to the contract: the same step on each of its kernels and on Octavo's reference backend."""

from __future__ import annotations

import numpy as np
import pytest
from octavo_example.device import CARD_MEMORY

from octavo.backend import (
    AttentionMetadata,
    BackendUnavailableError,
    DenseWeight,
    Device,
    DeviceConfig,
    DeviceOutOfMemoryError,
    DType,
    KVLayout,
    StepInputs,
    UnsupportedError,
    WeightRole,
)
from octavo.backend.discovery import discover, open_device

LAYOUT = KVLayout(layers=1, kv_heads=2, head_size=8, block_size=16, dtype=DType.FLOAT32)


def open_example(kernel: str) -> Device:
    return open_device(DeviceConfig("example", kernel=kernel)).device


def mixed_step() -> StepInputs:
    """A decode at position 20 beside a prefill of 18 tokens, and one row of padding."""
    positions = np.array([20, *range(18), 0], np.int32)
    sequences = np.array([0, *[1] * 18, 0], np.int32)
    tables = np.array([[4, 2], [1, 5], [0, 0]], np.int32)
    slots = tables[sequences, positions // 16] * 16 + positions % 16
    slots[-1] = 0
    starts, lengths = np.array([0, 1, 19, 19], np.int32), np.array([21, 18, 0], np.int32)
    meta = AttentionMetadata(positions, slots.astype(np.int32), sequences, starts, lengths, tables)
    return StepInputs(np.zeros(20, np.int32), np.array([0, 18], np.int32), meta)


def attend(device: Device, **options: object) -> np.ndarray:
    rng = np.random.default_rng(0)
    (kv,) = device.allocate_kv(LAYOUT, 6)
    past = rng.standard_normal((20, 2, 8)).astype(np.float32)  # of the decoding sequence
    slots = np.array([4 * 16 + p if p < 16 else 2 * 16 + p - 16 for p in range(20)], np.int32)
    kv = device.ops.write_kv(kv, device.upload(past), device.upload(past), device.upload(slots))
    q, k, v = (device.upload(rng.standard_normal((20, heads, 8)).astype(np.float32)) for heads in (6, 2, 2))
    meta = device.stage(mixed_step()).attention
    kv = device.ops.write_kv(kv, k, v, meta.slots)
    return device.download(device.ops.paged_attention(q, kv, meta, 0.3, **options))[:-1]


@pytest.mark.parametrize("kernel", ["grouped", "reference"])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}, {"sinks": np.ones(6, np.float32)}])
def test_attention_equals_the_reference_backend(kernel: str, options: dict[str, object]) -> None:
    expected = attend(open_device(DeviceConfig("reference")).device, **options)
    np.testing.assert_allclose(attend(open_example(kernel), **options), expected, atol=1e-5)


@pytest.mark.parametrize("role", [WeightRole.LINEAR, WeightRole.TIED_EMBEDDING])
def test_a_prepared_weight_gives_the_same_linear_layer(role: WeightRole) -> None:
    rng = np.random.default_rng(1)
    x, matrix, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 12), (7, 12), 7))
    device = open_example("auto")
    result = device.ops.linear(x, device.prepare(DenseWeight(matrix, bias), role))
    np.testing.assert_allclose(result, x @ matrix.T + bias, atol=1e-5)


def test_auto_is_the_kernel_that_the_probe_selects() -> None:
    (selected,) = [kernel.name for kernel in discover().named("example").probe().kernels if kernel.selected]
    assert open_example("auto").info.kernel == selected


def test_what_does_not_fit_the_card_is_refused_in_bytes() -> None:
    device = open_example("auto")
    with pytest.raises(DeviceOutOfMemoryError, match=r"the KV cache takes .* bytes; the example card has .* free"):
        device.allocate_kv(LAYOUT, CARD_MEMORY)


def test_a_cache_dtype_it_lacks_and_a_kernel_it_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="not in float16"):
        open_example("auto").allocate_kv(KVLayout(1, 2, 8, 16, DType.FLOAT16), 2)
    with pytest.raises(BackendUnavailableError, match="no kernel 'warp'; it has: grouped, reference"):
        open_example("warp")
