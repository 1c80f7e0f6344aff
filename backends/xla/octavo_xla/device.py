"""A device whose arrays are jax's, on one accelerator or on a mesh of them."""

from __future__ import annotations

import logging

import jax
import numpy as np

from octavo.backend import (
    Array,
    BackendUnavailableError,
    Bucket,
    Device,
    DeviceConfig,
    DeviceInfo,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    Ops,
    Step,
    StepInputs,
    TensorSource,
    UnsupportedError,
    Weight,
    WeightRole,
)
from octavo_xla import loading, memory
from octavo_xla.capabilities import capabilities
from octavo_xla.compiling import Compilations
from octavo_xla.downloads import Downloads
from octavo_xla.eager import EagerOps
from octavo_xla.kv import SCALED, TILE_OF_BYTES, PagedKV, block_bytes, row_lanes, scale_shape
from octavo_xla.mesh import MeshCollectives, ShardMesh
from octavo_xla.opening import open_platform
from octavo_xla.operations import operations
from octavo_xla.ops import prepare
from octavo_xla.options import XlaOptions
from octavo_xla.platforms import Platform
from octavo_xla.probing import Attention, selected
from octavo_xla.program_cache import ProgramCache
from octavo_xla.programs import StepCompiler

_log = logging.getLogger(__name__)


class XlaDevice(Device):
    """One device of a platform, or a mesh of `tensor_parallel_size`, all driven by this process.

    Raises BackendUnavailableError for a platform or a kernel that is not here, UnsupportedError for an option that does
    not exist and for a mesh larger than the devices.
    """

    def __init__(self, config: DeviceConfig) -> None:
        options = XlaOptions.parse(config.options)
        devices = open_platform(options, config.threads)
        if config.index:
            devices = devices[config.index :]
        self.mesh = ShardMesh(devices, config.tensor_parallel_size)
        first = self.mesh.devices[0]
        cache = None if options.cache is None else ProgramCache(options.cache, options.platform, first.device_kind)
        kernel = _kernel(config.kernel, options.platform)
        self._set_up(options.platform, kernel, len(devices), Compilations(cache))

    def _set_up(self, platform: Platform, kernel: Attention, devices: int, compilations: Compilations) -> None:
        self._platform = platform
        self._downloads = Downloads()
        self.compilations = compilations
        self._compiler = StepCompiler(self.mesh, self._downloads, compilations)
        self.collectives = MeshCollectives(self.mesh.size)
        first = self.mesh.devices[0]
        self.ops: Ops = EagerOps(operations(kernel, first.device_kind), self.mesh, compilations)
        notes = [f"Kernel {kernel.value} on platform {platform.value}."]
        if self.mesh.size > 1:
            notes.append(
                f"A mesh of {self.mesh.size} devices: weights and KV heads are split, one program runs on all."
            )
        if (cache := compilations.cache) is not None:
            notes.append(cache.note)
        self.info = DeviceInfo(
            backend="xla",
            name=first.device_kind,
            arch=platform.value,
            driver=f"jax {jax.__version__}",
            kernel=kernel.value,
            capabilities=capabilities(platform, kernel, devices),
            notes=tuple(notes),
        )

    # ------------------------------------------------------------------------------------------------- required

    def upload(self, host: np.ndarray) -> Array:
        return self.mesh.upload(host)

    def download(self, array: Array) -> np.ndarray:
        try:
            return self._downloads.receive(array)
        except jax.errors.JaxRuntimeError as error:
            # The step that failed had taken the KV cache over, and what it gave back is as little use.
            raise DeviceLostError(f"A step failed on the device: {error}") from error

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        try:
            return loading.load(self.mesh, tensor, dtype)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            asked = int(np.prod(tensor.shape)) * dtype.itemsize
            raise DeviceOutOfMemoryError(
                f"{tensor.name}: {asked:,} bytes do not fit; {self.memory().free:,} are free."
            ) from error

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        asked, free = blocks * self.kv_block_bytes(layout), self.memory().free
        if asked > free:
            raise DeviceOutOfMemoryError(f"A KV cache of {asked:,} bytes does not fit: {free:,} are free.")
        return [self._allocate_layer(layout, blocks) for _ in range(layout.layers)]

    def memory(self) -> MemoryInfo:
        return memory.of(self._platform, self.mesh.devices)

    # ------------------------------------------------------------------------------------------------- optional

    def kv_block_bytes(self, layout: KVLayout) -> int:
        """Raises UnsupportedError for a layout that cannot be: the cache is planned before weights are loaded."""
        self._check_kv(layout)
        return block_bytes(layout, padded=self._padded)

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        return prepare(weight, role)

    def stage(self, inputs: StepInputs) -> StepInputs:
        """The arrays as they are: the compiled step sends them, all in one transfer."""
        return inputs

    @property
    def compiling(self) -> bool:
        return self.compilations.compiling

    def compile(self, step: Step, bucket: Bucket) -> Step:
        return self._compiler.compile(step, bucket)

    def close(self) -> None:
        if self.compilations.count:
            _log.info("%s", self.compilations.summary())

    # ---------------------------------------------------------------------------------------------------- details

    @property
    def _padded(self) -> bool:
        return self._platform is Platform.TPU or self.info.kernel != Attention.XLA.value

    def _allocate_layer(self, layout: KVLayout, blocks: int) -> PagedKV:
        """All shards' heads."""
        heads = layout.kv_heads * self.mesh.size
        shape = (blocks, heads, layout.block_size, row_lanes(layout.head_size, self._padded))
        split = self.mesh.split(1)
        data = self.mesh.full(shape, 0, layout.dtype.value, split)
        scales = None
        if layout.dtype in SCALED:
            rows, entries = scale_shape(layout.kv_heads, layout.block_size, self._padded)
            scales = self.mesh.full((blocks, rows * self.mesh.size, entries), 1, "float32", split)
        return PagedKV(data, scales, layout.head_size)

    def _check_kv(self, layout: KVLayout) -> None:
        claimed = self.info.capabilities
        if layout.dtype not in claimed.kv_dtypes:
            names = ", ".join(dtype.value for dtype in claimed.kv_dtypes)
            raise UnsupportedError(
                f"A KV cache of {layout.dtype.value} is not possible on backend 'xla' here; {names} are."
            )
        if layout.block_size not in claimed.block_sizes:
            sizes = ", ".join(map(str, sorted(claimed.block_sizes)))
            raise UnsupportedError(
                f"KV blocks of {layout.block_size} tokens are not possible on backend 'xla' here; blocks of {sizes} "
                "are."
            )
        if self.info.kernel != Attention.XLA.value and layout.dtype in SCALED and layout.block_size < TILE_OF_BYTES:
            raise UnsupportedError(
                f"A KV cache of {layout.dtype.value} takes blocks of at least {TILE_OF_BYTES} tokens with kernel "
                f"{self.info.kernel!r}, whose tiles are as high; block_size is {layout.block_size}."
            )


def _kernel(asked: str, platform: Platform) -> Attention:
    if asked == "auto":
        return selected(platform)
    if asked not in set(Attention):
        names = ", ".join(kernel.value for kernel in Attention)
        raise BackendUnavailableError(f"Backend 'xla' has no kernel {asked!r}; it has: {names}.")
    if (asked == Attention.PALLAS.value) != (platform is Platform.TPU) and asked != Attention.XLA.value:
        raise BackendUnavailableError(f"Kernel {asked!r} of backend 'xla' does not run on platform {platform.value}.")
    return Attention(asked)
