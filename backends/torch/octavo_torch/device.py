"""A device whose arrays are torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo.backend import (
    Array,
    Bucket,
    ConcatenatedSource,
    Device,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    Step,
    StepInputs,
    TensorSource,
    UnsupportedError,
)
from octavo_torch.arrays import to_numpy, to_torch, torch_dtype


class TorchDevice(Device):
    """What the PyTorch backends share. A subclass sets `info`, `ops` and `torch_device`, and brings `memory`."""

    torch_device: torch.device

    def upload(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        return to_torch(host).to(self.torch_device)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        return to_numpy(array.cpu())

    def load(self, tensor: TensorSource, dtype: DType) -> torch.Tensor:
        host = self._allocate(tensor.shape, dtype, torch.device("cpu"), tensor.name)
        # Each part straight from the mapped file to its place: a fused matrix needs no copy of its own.
        target, row = to_numpy(host), 0
        for part in _parts(tensor):
            end = row + part.shape[0]
            np.copyto(target[row:end], part.read(), casting="unsafe")
            row = end
        return host.to(self.torch_device)

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.check_kv(layout)
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [self._allocate(shape, layout.dtype, self.torch_device, "KV cache") for _ in range(layout.layers)]

    def compile(self, step: Step, bucket: Bucket) -> Step:
        """The step without autograd's bookkeeping."""

        def run(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            with torch.inference_mode():
                return step(weights, kv, inputs)

        return run

    def check_kv(self, layout: KVLayout) -> None:
        """Raises UnsupportedError for a layout that is outside this device's capabilities."""
        claimed = self.info.capabilities
        if layout.dtype not in claimed.kv_dtypes:
            names = ", ".join(dtype.value for dtype in claimed.kv_dtypes)
            raise UnsupportedError(
                f"A KV cache of {layout.dtype.value} is not possible on backend {self.info.backend!r}; {names} are."
            )
        if layout.block_size not in claimed.block_sizes:
            sizes = ", ".join(map(str, sorted(claimed.block_sizes)))
            raise UnsupportedError(
                f"KV blocks of {layout.block_size} tokens are not possible on backend {self.info.backend!r}; "
                f"blocks of {sizes} are."
            )

    def _allocate(self, shape: tuple[int, ...], dtype: DType, where: torch.device, what: str) -> torch.Tensor:
        try:
            return torch.empty(shape, dtype=torch_dtype(dtype), device=where)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the host's allocator raises it plain
            asked = int(np.prod(shape)) * dtype.itemsize
            raise DeviceOutOfMemoryError(
                f"{what}: {asked:,} bytes do not fit; {self.memory().free:,} are free."
            ) from error


def _parts(tensor: TensorSource) -> list[TensorSource]:
    if not isinstance(tensor, ConcatenatedSource):
        return [tensor]
    return [leaf for part in tensor.parts for leaf in _parts(part)]
