"""The reference device, which also shows what the defaults of `Device` do."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.backend import (
    ArraySource,
    AttentionMetadata,
    BackendUnavailableError,
    Bucket,
    DenseWeight,
    DeviceConfig,
    DeviceOutOfMemoryError,
    DType,
    KVLayout,
    StepInputs,
    UnsupportedError,
    WeightRole,
)
from octavo.reference.device import CAPABILITIES, ReferenceDevice

DEVICE = ReferenceDevice(DeviceConfig())


def layout(dtype: DType = DType.FLOAT32) -> KVLayout:
    return KVLayout(layers=3, kv_heads=2, head_size=8, block_size=4, dtype=dtype)


@pytest.mark.parametrize("dtype", CAPABILITIES.kv_dtypes)
def test_a_cache_has_the_plain_layout_in_every_claimed_dtype_and_the_promised_size(dtype):
    cache = DEVICE.allocate_kv(layout(dtype), 6)
    assert [layer.shape for layer in cache] == [(2, 6, 4, 2, 8)] * 3
    assert {layer.dtype for layer in cache} == {dtype.numpy}
    assert sum(layer.nbytes for layer in cache) == 6 * DEVICE.kv_block_bytes(layout(dtype))


def test_a_cache_dtype_that_is_not_claimed_is_refused_with_those_that_are():
    with pytest.raises(UnsupportedError, match=r"A KV cache of float8_e5m2 is not possible here; float32, bfloat16"):
        DEVICE.allocate_kv(layout(DType.FLOAT8_E5M2), 1)


def test_a_cache_that_does_not_fit_is_refused_in_bytes():
    with pytest.raises(DeviceOutOfMemoryError, match=r"A KV cache of [\d,]+ bytes does not fit: [\d,]+ are free\."):
        DEVICE.allocate_kv(layout(), 2**40)


@pytest.mark.parametrize("dtype", CAPABILITIES.dtypes)
def test_a_loaded_tensor_outlives_its_source_in_the_asked_dtype(dtype):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = DEVICE.load(ArraySource("w", values), dtype)
    values[:] = -1
    assert loaded.dtype == dtype.numpy
    np.testing.assert_array_equal(loaded.astype(np.float32), np.arange(6).reshape(2, 3))


def test_memory_is_the_hosts():
    memory = DEVICE.memory()
    assert 0 < memory.free <= memory.total
    assert memory.shared_with_host


def test_a_kernel_it_does_not_have_is_refused():
    with pytest.raises(BackendUnavailableError, match="no kernel 'fast'; it has one, 'reference'"):
        ReferenceDevice(DeviceConfig(kernel="fast"))


def test_stage_uploads_each_array_once_and_keeps_what_is_on_the_device():
    class OnDevice:
        """An array of another library, as the sampled ids of the step before are."""

    class Recording(ReferenceDevice):
        seen: tuple[int, ...] = ()

        def upload(self, host: np.ndarray) -> np.ndarray:
            self.seen += (id(host),)
            return host

    device, ids = Recording(DeviceConfig()), OnDevice()
    parts = [np.zeros(2, np.int32) for _ in range(7)]
    staged = device.stage(StepInputs(ids, parts[0], AttentionMetadata(*parts[1:])))
    assert staged.token_ids is ids
    assert device.seen == tuple(id(part) for part in parts)
    assert staged.attention.plan is None


def test_the_other_defaults_change_nothing():
    weight, step = DenseWeight(np.zeros((2, 2))), lambda weights, kv, inputs: (None, kv)
    assert DEVICE.prepare(weight, WeightRole.LINEAR) is weight
    assert DEVICE.compile(step, Bucket(0, 0, 0, 0, False)) is step
    assert DEVICE.close() is None
