"""The host's processor as a device."""

from __future__ import annotations

import platform

import torch

from octavo.backend import (
    Capabilities,
    DenseWeight,
    DeviceConfig,
    DeviceInfo,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    UnsupportedError,
    Weight,
    WeightRole,
)
from octavo_cpu.memory import host_memory
from octavo_cpu.native.isa import Isa, choose
from octavo_cpu.native.kv import PagedKV, block_elements
from octavo_cpu.native.library import MAX_HEAD_SIZE, TYPES, Library
from octavo_cpu.native.openmp import gomp_parallel
from octavo_cpu.ops import CpuOps, PackedWeight
from octavo_cpu.processor import processor_name
from octavo_torch import TorchDevice, TorchOps

CAPABILITIES = Capabilities(
    dtypes=(DType.FLOAT32, DType.BFLOAT16),
    default_dtype=DType.FLOAT32,
    kv_dtypes=(DType.FLOAT32, DType.BFLOAT16),
    block_sizes=(16, 32, 64, 128, 8, 4, 2, 1),
)

_PACKED_ROLES = (WeightRole.LINEAR, WeightRole.TIED_EMBEDDING)


class CpuDevice(TorchDevice):
    """Torch tensors on the host, native kernels where the build has them.

    Raises BackendUnavailableError for a kernel that cannot run here, UnsupportedError for what one host cannot be.
    """

    torch_device = torch.device("cpu")

    def __init__(self, config: DeviceConfig) -> None:
        if config.index != 0:
            raise UnsupportedError(f"Backend 'cpu' has one device, of index 0; {config.index} was asked for.")
        if config.tensor_parallel_size != 1:
            raise UnsupportedError(
                f"Backend 'cpu' runs a model on one device; tensor_parallel_size = {config.tensor_parallel_size} was "
                "asked for, the largest that fits is 1."
            )
        if config.options:
            raise UnsupportedError(
                f"Backend 'cpu' has no options of its own; {', '.join(config.options)} was asked for."
            )
        if config.threads is not None:
            if config.threads < 1:
                raise UnsupportedError(f"threads = {config.threads} was asked for; at least 1 is needed.")
            torch.set_num_threads(config.threads)
        choice = choose(config.kernel)
        threads = torch.get_num_threads()
        self._library: Library | None = None
        self.ops = TorchOps()
        pool = f"{threads} threads, torch's own"
        if choice.isa is not Isa.TORCH:
            parallel = gomp_parallel()
            if parallel is None:
                pool = "1 thread for the native kernels: torch brings no OpenMP runtime whose threads they could share"
            self._library = Library(choice.isa, parallel, threads)
            self.ops = CpuOps(self._library)
        self.info = DeviceInfo(
            backend="cpu",
            name=processor_name(),
            arch=f"{platform.machine()}/{choice.isa.value}",
            driver=f"torch {torch.__version__}",
            kernel=choice.isa.value,
            capabilities=CAPABILITIES,
            notes=(
                f"Kernel {choice.isa.value}: {choice.reason}.",
                f"Thread pool: {pool}.",
                "bfloat16 weights and caches are stored in 2 bytes and computed with in float32.",
            ),
        )

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        # Experts stay plain: the default operation slices them by expert.
        if self._library is None or role not in _PACKED_ROLES or not isinstance(weight, DenseWeight):
            return weight
        if weight.array.ndim != 2 or weight.array.dtype not in TYPES:
            return weight
        bias = None if weight.bias is None else weight.bias.float().contiguous()
        return PackedWeight(self._library.pack(weight.array.contiguous()), weight.array.shape[0], bias)

    def kv_block_bytes(self, layout: KVLayout) -> int:
        if not self._native(layout):
            return layout.block_bytes
        return layout.layers * block_elements(layout) * layout.dtype.itemsize

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.check_kv(layout)
        asked, free = blocks * self.kv_block_bytes(layout), self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        if self._library is None or not self._native(layout):
            return super().allocate_kv(layout, blocks)
        cache = []
        for _ in range(layout.layers):
            memory = self._allocate((blocks, block_elements(layout)), layout.dtype, self.torch_device, "KV cache")
            self._library.use_huge_pages(memory)
            cache.append(PagedKV(memory, layout.kv_heads, layout.head_size, layout.block_size))
        return cache

    def memory(self) -> MemoryInfo:
        return host_memory()

    def _native(self, layout: KVLayout) -> bool:
        """Whether the native kernels take this cache; torch's operations take every one."""
        return self._library is not None and layout.head_size % 8 == 0 and layout.head_size <= MAX_HEAD_SIZE
