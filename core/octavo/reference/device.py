"""A device in NumPy: five methods over ordinary arrays."""

from __future__ import annotations

import platform

import numpy as np
import psutil

from octavo.backend import (
    BackendUnavailableError,
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
from octavo.reference.plugin import KERNEL

CAPABILITIES = Capabilities(
    dtypes=(DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16),
    kv_dtypes=(DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16),
    quantized_bits=(2, 3, 4, 5, 6, 8),
    block_sizes=(16, 1, 2, 4, 8, 32, 64, 128),
)


class ReferenceDevice(Device):
    """The host as seen by NumPy. Raises BackendUnavailableError for a kernel it does not have."""

    def __init__(self, config: DeviceConfig) -> None:
        if config.kernel not in ("auto", KERNEL):
            raise BackendUnavailableError(
                f"Backend 'reference' has no kernel {config.kernel!r}; it has one, {KERNEL!r}."
            )
        self.info = DeviceInfo(
            backend="reference",
            name=platform.processor() or platform.machine(),
            arch=platform.machine(),
            driver=f"numpy {np.__version__}",
            kernel=KERNEL,
            capabilities=CAPABILITIES,
        )

    def upload(self, host: np.ndarray) -> np.ndarray:
        return host

    def download(self, array: np.ndarray) -> np.ndarray:
        return array

    def load(self, tensor: TensorSource, dtype: DType) -> np.ndarray:
        # A copy, always: the mapped file may be closed after loading.
        return np.array(tensor.read(), dtype=dtype.numpy, copy=True)

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if layout.dtype not in CAPABILITIES.kv_dtypes:
            names = ", ".join(CAPABILITIES.kv_dtypes)
            raise UnsupportedError(f"A KV cache of {layout.dtype.value} is not possible here; {names} are.")
        asked, free = blocks * layout.block_bytes, self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [np.empty(shape, layout.dtype.numpy) for _ in range(layout.layers)]

    def memory(self) -> MemoryInfo:
        memory = psutil.virtual_memory()
        return MemoryInfo(memory.available, memory.total, shared_with_host=True)
