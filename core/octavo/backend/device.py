"""A device: what a backend must bring (five methods) and may bring (five more)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from octavo.backend.collectives import Collectives
from octavo.backend.dtype import DType
from octavo.backend.kv import KVCache, KVLayout
from octavo.backend.ops import Ops
from octavo.backend.step import Bucket, Step, StepInputs
from octavo.backend.tree import tree_map
from octavo.backend.weights import Array, TensorSource, Weight, WeightRole


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device claims. Read before anything is built; conformance makes the backend prove each claim.

    dtypes: compute dtypes. default_dtype: what "auto" means here; None takes the checkpoint's own if it is in `dtypes`.
    kv_dtypes: dtypes a KV cache can have.
    quantized_bits: the `bits` of QuantizedWeight that ops take without dequantizing at load.
    block_sizes: KV block sizes, the preferred one first. head_sizes: None takes any.
    static_shapes: the runner pads every step to a bucket (XLA, graph capture); otherwise steps have their real size.
    graph_capture: `compile` records decode buckets. max_tensor_parallel: largest number of shards.
    asynchronous: compiled steps return before the device has finished; core then schedules the next step meanwhile,
        feeding it the ids just sampled without a download (`Feedback`). All work is done in the order of the calls.
    """

    dtypes: tuple[DType, ...] = (DType.FLOAT32,)
    default_dtype: DType | None = DType.FLOAT32
    kv_dtypes: tuple[DType, ...] = (DType.FLOAT32,)
    quantized_bits: tuple[int, ...] = ()
    block_sizes: tuple[int, ...] = (16,)
    head_sizes: tuple[int, ...] | None = None
    static_shapes: bool = False
    graph_capture: bool = False
    max_tensor_parallel: int = 1
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is.

    name: "NVIDIA H200", "Intel Xeon ..."; arch: "sm_90", "gfx942", "x86_64/avx512"; driver: a version or "".
    kernel: the attention kernel that runs. notes: sentences for the operator (why this kernel, what is missing).
    """

    backend: str
    name: str
    arch: str
    driver: str
    kernel: str
    capabilities: Capabilities
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes on the device, now. shared_with_host: it is the host's own memory, of which core takes a modest part."""

    free: int
    total: int
    shared_with_host: bool = False


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """What `open_device` is asked for.

    backend: a name, or "auto". kernel: a name from the backend's probe, or "auto". index: which device of several.
    threads: host threads for backends that compute on the host. options: the backend's own settings.
    tensor_parallel_size: shards of the model. Where each shard is a process with a device of its own, rank is this
        process's and rendezvous the address at which they meet; a device that is a mesh has rank 0 and needs neither.
    """

    backend: str = "auto"
    kernel: str = "auto"
    index: int = 0
    tensor_parallel_size: int = 1
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    rank: int = 0
    rendezvous: str = ""


class Device(ABC):
    """One accelerator, or one mesh of them. Calls come from one thread.

    A subclass sets `info`; `ops` and `collectives` have working defaults.
    """

    info: DeviceInfo
    ops: Ops = Ops()
    collectives: Collectives = Collectives()

    # ------------------------------------------------------------------------------------------------- required

    @abstractmethod
    def upload(self, host: np.ndarray) -> Array:
        """A device array with the host array's shape and dtype.

        The device may keep a view of the host array: the caller does not write to it again.
        """

    @abstractmethod
    def download(self, array: Array) -> np.ndarray:
        """The array on the host. Waits for this array only, not for work queued after it.

        Where the device is asynchronous, what went wrong in the step that gives the array is raised here.
        """

    @abstractmethod
    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        """A checkpoint's tensor on the device in `dtype`, this shard's part of it.

        Raises DeviceOutOfMemoryError. The source may be a view of a mapped file that is closed later: copy it.
        """

    @abstractmethod
    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        """A KV cache of `blocks` blocks, block 0 included; contents undefined. A list with one LayerKV per layer.

        Raises UnsupportedError for a layout the device does not take, DeviceOutOfMemoryError when it does not fit.
        """

    @abstractmethod
    def memory(self) -> MemoryInfo:
        """Free and total bytes, now; other users of the device counted."""

    # ------------------------------------------------------------------------------------------------- optional

    def kv_block_bytes(self, layout: KVLayout) -> int:
        """(optional) Bytes that one block takes over all layers. Override where the layout pads or compresses."""
        return layout.block_bytes

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        """(optional) Repack a weight once, after loading, into the layout this device's ops want.

        Takes a weight of `octavo.backend.weights` (for NORM and OTHER a bare array) and returns it or a type of the
        backend's own, which only the ops of that role will see. The argument is not used again, so its memory may be
        taken over.
        """
        return weight

    def stage(self, inputs: StepInputs) -> StepInputs:
        """(optional) Move a step's inputs to the device: NumPy arrays in, device arrays out.

        The default uploads array by array. A backend overrides it for one pinned transfer, or to plan its kernels on
        the host and attach the plan as `inputs.attention.plan`. Go by `tree.flatten` and not by the fields' names:
        later versions may add fields. Arrays that are on the device already stay as they are.

        On an asynchronous device two steps may be in flight: a step is staged, and its compiled step called, before the
        outputs of the step before were downloaded. A staging buffer may be used again only once the step that reads it
        has finished.
        """
        return tree_map(lambda leaf: self.upload(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)

    def compile(self, step: Step, bucket: Bucket) -> Step:
        """(optional) Make a step fast for one bucket: capture a graph, or trace and donate the KV cache.

        Called once a bucket; the runner keeps the result and always calls it with the same weights, the KV cache that
        the step before returned, and inputs whose arrays have the bucket's shapes. Buckets that differ in sizes alone
        come with one and the same `step`, so that a backend may share what it compiled between them. What it returns
        stays valid until it is downloaded, also when the step runs again before that: a replayed graph copies its
        outputs. A step that fails leaves the KV cache usable, or raises DeviceLostError (donated buffers may be gone).
        Fields of the arguments may be added later, so capture and trace whatever `tree.flatten` gives. The default runs
        the step as it is.

        On an asynchronous device the compiled step may return before its work is done, as long as all work is done in
        the order of the calls: steps, and what core calls between them (`copy_blocks`, `write_kv`, uploads). The
        outputs of a step survive the launch of the next one, which may read one of them (`Feedback.last_tokens`).
        """
        return step

    @property
    def compiling(self) -> bool:
        """(optional) Whether the device compiles now: a step that takes minutes for that is no hanging device.

        Read by another thread, at any time. The default is for devices that compile in moments, or never.
        """
        return False

    def close(self) -> None:  # noqa: B027  # optional: most devices hold nothing
        """(optional) Give back what the device holds outside its arrays (process groups, streams)."""
