"""The device: five methods, and it runs every model on the contract's own operations."""

from __future__ import annotations

import weakref

import numpy as np

from octavo.backend import (
    Capabilities,
    Device,
    DeviceConfig,
    DeviceInfo,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    TensorSource,
    UnsupportedError,
)

CARD_MEMORY = 4 << 30  # bytes
CAPABILITIES = Capabilities(dtypes=(DType.FLOAT32,), kv_dtypes=(DType.FLOAT32,), block_sizes=(16, 32))


class ExampleDevice(Device):
    """A card with memory of its own: arrays are copied onto it and back, and what it holds is counted."""

    def __init__(self, config: DeviceConfig) -> None:
        self.info = DeviceInfo(
            backend="example",
            name=f"Example card {config.index}",
            arch="pretended",
            driver="1.0",
            kernel="reference",
            capabilities=CAPABILITIES,
        )
        self._used = 0

    def upload(self, host: np.ndarray) -> np.ndarray:
        return host.copy()

    def download(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def load(self, tensor: TensorSource, dtype: DType) -> np.ndarray:
        self._check_fits(int(np.prod(tensor.shape)) * dtype.itemsize, tensor.name)
        return self._keep(np.array(tensor.read(), dtype=dtype.numpy))

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if layout.dtype is not DType.FLOAT32:
            raise UnsupportedError(f"The example card keeps its KV cache in float32, not in {layout.dtype.value}.")
        self._check_fits(blocks * layout.block_bytes, "the KV cache")
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [self._keep(np.empty(shape, np.float32)) for _ in range(layout.layers)]

    def memory(self) -> MemoryInfo:
        return MemoryInfo(free=CARD_MEMORY - self._used, total=CARD_MEMORY)

    def _check_fits(self, size: int, what: str) -> None:
        free = CARD_MEMORY - self._used
        if size > free:
            raise DeviceOutOfMemoryError(f"{what} takes {size:,} bytes; the example card has {free:,} free.")

    def _keep(self, array: np.ndarray) -> np.ndarray:
        """Count an array until nobody holds it any more."""
        self._used += array.nbytes
        weakref.finalize(array, self._give_back, array.nbytes)
        return array

    def _give_back(self, size: int) -> None:
        self._used -= size
