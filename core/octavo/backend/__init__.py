"""The backend contract: the one thing that a hardware vendor reads.

A backend is a package with an entry point in the group `octavo.backends` that names a module with the hook
`octavo_backends`. It returns `Backend`s; each opens a `Device`, and a device brings `Ops`. Five methods of `Device` are
required, the rest have working defaults. `docs/vendor-guide.md` builds one from nothing.
"""

from __future__ import annotations

from octavo.backend.collectives import Collectives
from octavo.backend.device import Capabilities, Device, DeviceConfig, DeviceInfo, MemoryInfo
from octavo.backend.dtype import DType
from octavo.backend.errors import (
    ApiVersionError,
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    DeviceOutOfMemoryError,
    UnknownBackendError,
    UnsupportedError,
)
from octavo.backend.hooks import Backend, Kernel, Probe, hookimpl
from octavo.backend.kv import KVCache, KVLayout, LayerKV
from octavo.backend.ops import Ops
from octavo.backend.step import AttentionMetadata, Bucket, Feedback, Step, StepInputs
from octavo.backend.version import API_VERSION
from octavo.backend.weights import (
    Activation,
    Array,
    ArraySource,
    ConcatenatedSource,
    DenseWeight,
    ExpertWeights,
    LoRABank,
    QuantizedWeight,
    RotaryTable,
    TensorSource,
    Weight,
    WeightRole,
)

__all__ = [
    "API_VERSION",
    "Activation",
    "ApiVersionError",
    "Array",
    "ArraySource",
    "AttentionMetadata",
    "Backend",
    "BackendError",
    "BackendUnavailableError",
    "Bucket",
    "Capabilities",
    "Collectives",
    "ConcatenatedSource",
    "DType",
    "DenseWeight",
    "Device",
    "DeviceConfig",
    "DeviceInfo",
    "DeviceLostError",
    "DeviceOutOfMemoryError",
    "ExpertWeights",
    "Feedback",
    "KVCache",
    "KVLayout",
    "Kernel",
    "LayerKV",
    "LoRABank",
    "MemoryInfo",
    "Ops",
    "Probe",
    "QuantizedWeight",
    "RotaryTable",
    "Step",
    "StepInputs",
    "TensorSource",
    "UnknownBackendError",
    "UnsupportedError",
    "Weight",
    "WeightRole",
    "hookimpl",
]
