"""torch-xla's device: lazy tensors, whose pending operations become one XLA program where a step ends."""

from __future__ import annotations

import platform
from typing import Any

import psutil
import torch
import torch_xla
from torch_xla import runtime

from octavo.backend import (
    Bucket,
    Capabilities,
    DeviceConfig,
    DeviceInfo,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    Step,
    StepInputs,
)
from octavo_torch import TorchDevice
from octavo_torch_xla.ops import StaticOps
from octavo_torch_xla.plugin import KERNEL

_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)

CAPABILITIES = Capabilities(
    dtypes=_DTYPES,
    default_dtype=DType.FLOAT32,
    kv_dtypes=_DTYPES,
    quantized_bits=(4, 8),
    block_sizes=(16, 32, 64, 128, 256, 8, 4, 2, 1),
    static_shapes=True,
)


class TorchXlaDevice(TorchDevice):
    """The device that torch-xla's runtime chose (`PJRT_DEVICE`)."""

    def __init__(self, config: DeviceConfig) -> None:
        self._compiling = False
        self.torch_device = torch_xla.device(config.index)
        self.ops = StaticOps(torch_xla.sync)
        kind = runtime.device_type()
        self.info = DeviceInfo(
            backend="xla:torch",
            name=f"torch-xla's {kind} platform",
            arch=platform.machine() if kind == "CPU" else kind,
            driver=f"torch {torch.__version__}, torch-xla {torch_xla.__version__}",
            kernel=KERNEL.name,
            capabilities=CAPABILITIES,
        )

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.check_kv(layout)
        # A lazy tensor takes its memory when it is first computed, and the host promises memory that it does not have.
        asked, free = blocks * self.kv_block_bytes(layout), self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        return super().allocate_kv(layout, blocks)

    @property
    def compiling(self) -> bool:
        return self._compiling

    def compile(self, step: Step, bucket: Bucket) -> Step:
        """The step, cut off as one XLA program: what it wrote in place is an input aliased to an output."""
        met = set()

        def run(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            # torch-xla compiles in `sync` and does not say so: it does for shapes that were not there before.
            shapes = (len(inputs.token_ids), len(inputs.logit_rows), tuple(inputs.attention.block_tables.shape))
            self._compiling = (shapes, inputs.attention.decode_only) not in met
            try:
                # Not inference_mode: a view of a lazy tensor refuses to be written to in it ("Cannot set
                # version_counter for inference tensor").
                with torch.no_grad():
                    result = step(weights, kv, inputs)
                torch_xla.sync()
            finally:
                self._compiling = False
            met.add((shapes, inputs.attention.decode_only))
            return result

        return run

    def memory(self) -> MemoryInfo:
        machine = psutil.virtual_memory()  # the CPU platform has no allocator statistics
        return MemoryInfo(free=machine.available, total=machine.total, shared_with_host=True)
