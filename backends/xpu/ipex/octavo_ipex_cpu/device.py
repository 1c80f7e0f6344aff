"""The host as an IPEX device: the xpu backend's `IpexAttention`, and torch's operations beside it."""

from __future__ import annotations

import platform

import psutil
import torch

from octavo.backend import (
    Array,
    AttentionMetadata,
    Capabilities,
    DeviceConfig,
    DeviceInfo,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    LayerKV,
    MemoryInfo,
    StepInputs,
)
from octavo_torch import TorchDevice, TorchOps
from octavo_xpu.ipex import IpexAttention, Platform, find_ipex, with_plan

_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)

CAPABILITIES = Capabilities(
    dtypes=_DTYPES,
    default_dtype=DType.FLOAT32,
    kv_dtypes=_DTYPES,
    block_sizes=(16, 32, 64, 128, 256, 8, 4, 2, 1),
)


class IpexCpuOps(TorchOps):
    """A layer's cache is one tensor of the contract's plain shape [2, blocks, block_size, kv_heads, head_size], so that
    torch's operations take it; in memory the axes of slots and heads have changed places.
    """

    def __init__(self, attention: IpexAttention) -> None:
        self._attention = attention

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        keys, values = (self._attention.in_kernel_order(side) for side in kv)
        rows = (side.to(kv.dtype).contiguous() for side in (k, v))
        self._attention.calls.reshape_and_cache_flash(*rows, keys, values, slots)
        return kv

    def paged_attention(
        self,
        q: Array,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        keys, values = kv
        if self._attention.takes(q, keys, meta.plan, window, sinks):
            return self._attention.attend(q, keys, values, meta, scale, softcap)
        return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)


class IpexCpuDevice(TorchDevice):
    """IPEX's CPU platform. Raises BackendUnavailableError where IPEX is missing or does not load."""

    torch_device = torch.device("cpu")

    def __init__(self, config: DeviceConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.ops = IpexCpuOps(IpexAttention(Platform.CPU))
        self.info = DeviceInfo(
            backend="ipex-cpu",
            name="IPEX CPU platform",
            arch=platform.machine(),
            driver=f"torch {torch.__version__}, IPEX {find_ipex().version}",
            kernel="ipex",
            capabilities=CAPABILITIES,
            notes=("The code that calls the kernel of IPEX's XPU platform calls that of its CPU platform here.",),
        )

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.check_kv(layout)
        # The host promises memory that it does not have.
        asked, free = blocks * self.kv_block_bytes(layout), self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        in_memory = (2, blocks, layout.kv_heads, layout.block_size, layout.head_size)
        return [layer.view(in_memory).transpose(2, 3) for layer in super().allocate_kv(layout, blocks)]

    def stage(self, inputs: StepInputs) -> StepInputs:
        return super().stage(with_plan(inputs))

    def memory(self) -> MemoryInfo:
        machine = psutil.virtual_memory()
        return MemoryInfo(free=machine.available, total=machine.total, shared_with_host=True)
