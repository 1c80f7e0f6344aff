"""The device that the accelerators share: torch tensors on a card, with everything queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from octavo.backend import (
    Array,
    Bucket,
    ConcatenatedSource,
    DeviceConfig,
    DeviceInfo,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    Step,
    StepInputs,
    TensorSource,
    UnsupportedError,
    Weight,
    WeightRole,
)
from octavo_torch.device import TorchDevice
from octavo_torch.gpu.downloads import Downloads
from octavo_torch.gpu.errors import in_contract_words
from octavo_torch.gpu.graphs import GraphCache, RecordedStep
from octavo_torch.gpu.kernel_choice import KernelChoice
from octavo_torch.gpu.options import GpuOptions
from octavo_torch.gpu.pinned import PinnedPool
from octavo_torch.gpu.runtime import Runtime
from octavo_torch.gpu.uploads import Uploads


class GpuDevice(TorchDevice):
    """One card. Uploads, steps and downloads are queued in the order of the calls; only `download` waits.

    Raises UnsupportedError for more shards than one, and for options that there are not.
    """

    def __init__(
        self, backend: str, runtime: Runtime, kernels: KernelChoice, config: DeviceConfig, notes: tuple[str, ...] = ()
    ) -> None:
        if config.tensor_parallel_size != 1:
            raise UnsupportedError(
                f"Backend {backend!r} runs a model on one card; tensor_parallel_size = {config.tensor_parallel_size} "
                "was asked for, the largest that fits is 1."
            )
        options = GpuOptions.parse(config.options, backend)
        self.torch_device = runtime.device
        self.ops = kernels.ops
        self._runtime, self._kernels = runtime, kernels
        pool = PinnedPool(runtime)
        self._uploads = Uploads(runtime, pool, options.step_seconds)
        self._downloads = Downloads(runtime, pool, options.step_seconds)
        self._lost = False
        with self._in_contract_words(f"Opening {runtime.properties.name}"):
            budget = int(runtime.memory().total * options.graph_memory)
        self._graphs = GraphCache(budget)
        claimed, card = kernels.capabilities, runtime.properties
        self._records = claimed.graph_capture and runtime.records and options.graphs and budget > 0
        if self._records:
            notes += (f"Decode steps that come again are recorded as graphs, in {budget >> 20:,} MiB at most.",)
        self.info = DeviceInfo(
            backend=backend,
            name=card.name,
            arch=card.arch,
            driver=card.driver,
            kernel=kernels.name,
            capabilities=replace(claimed, graph_capture=self._records),
            notes=notes,
        )

    # ----------------------------------------------------------------------------------------------------- arrays

    def upload(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        with self._in_contract_words("An upload"):
            return self._uploads.upload(host)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        with self._in_contract_words("A download"):
            return self._downloads.receive(array)

    def load(self, tensor: TensorSource, dtype: DType) -> torch.Tensor:
        """In chunks from the mapped file, converted on the card: the host never holds a copy of the whole."""
        self._runtime.activate()
        target = self._allocate(tensor.shape, dtype, self.torch_device, tensor.name)
        with self._in_contract_words(f"Loading {tensor.name}"):
            self._fill(target.view(-1), tensor)
        return target

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        with self._in_contract_words(f"Preparing a weight of role {role.value}"):
            return self._kernels.prepare(weight, role)

    # --------------------------------------------------------------------------------------------------- KV cache

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return self._kernels.kv_block_bytes(layout)

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.check_kv(layout)
        self._check_head_size(layout.head_size)
        asked, free = blocks * self.kv_block_bytes(layout), self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        with self._in_contract_words(f"A KV cache of {asked:,} bytes"):
            return self._kernels.allocate_kv(layout, blocks, self.torch_device)

    def memory(self) -> MemoryInfo:
        with self._in_contract_words("To say what is free"):
            return self._runtime.memory()

    # ------------------------------------------------------------------------------------------------------ steps

    def stage(self, inputs: StepInputs) -> StepInputs:
        with self._in_contract_words("The upload of a step's inputs"):
            return self._uploads.stage(self._kernels.plan(inputs))

    def compile(self, step: Step, bucket: Bucket) -> Step:
        """Decodes of a static shape are recorded as graphs; all else runs eagerly. Either way the outputs are on their
        way to the host when the step returns.
        """
        inner: Step = _Eager(step, self._downloads)
        if self._records and bucket.decode_only and bucket.tokens:
            inner = RecordedStep(step, bucket, self._runtime, self._graphs, self._uploads, self._downloads)

        def run(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            with torch.inference_mode(), self._in_contract_words("A step"):
                return inner(weights, kv, inputs)

        return run

    def close(self) -> None:
        if self._lost:
            return  # it has nothing to give back, and a card that hangs would be waited for
        self._graphs.clear()
        self._runtime.activate()
        try:
            self._runtime.trim()
        except RuntimeError:
            return  # lost just now

    @contextmanager
    def _in_contract_words(self, doing: str) -> Iterator[None]:
        """The card is the current one meanwhile, and it is remembered where it was lost."""
        try:
            with in_contract_words(self._runtime, doing):
                self._runtime.activate()
                yield
        except DeviceLostError:
            self._lost = True
            raise

    def _check_head_size(self, asked: int) -> None:
        possible = self.info.capabilities.head_sizes
        if possible is not None and asked not in possible:
            raise UnsupportedError(
                f"Heads of {asked} are not possible with kernel {self.info.kernel!r}; multiples of {possible[0]} up to "
                f"{possible[-1]} are."
            )

    def _fill(self, target: torch.Tensor, source: TensorSource) -> None:
        if not isinstance(source, ConcatenatedSource):
            self._uploads.fill(target, source.read())
            return
        # Part by part: a fused matrix needs no copy of its own on the host.
        start = 0
        for part in source.parts:
            stop = start + int(np.prod(part.shape))
            self._fill(target[start:stop], part)
            start = stop


class _Eager:
    """A step as it is, its outputs sent off."""

    def __init__(self, step: Step, downloads: Downloads) -> None:
        self._step, self._downloads = step, downloads

    def __call__(self, weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
        outputs, kv = self._step(weights, kv, inputs)
        return self._downloads.send(outputs), kv
