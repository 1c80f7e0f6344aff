"""What each platform is claimed to do; conformance makes the backend prove it."""

from __future__ import annotations

from octavo.backend import Capabilities, DType
from octavo_xla.platforms import Platform
from octavo_xla.probing import Attention

_SCALED = (DType.INT8, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2)
_CODES = (4, 8, 2, 3, 5, 6)


def capabilities(platform: Platform, kernel: Attention, devices: int) -> Capabilities:
    """devices: how many there are to be sharded over."""
    if kernel is not Attention.XLA:
        return _on_lanes(platform, devices)
    dtypes = (DType.FLOAT32, DType.BFLOAT16) + (() if platform is Platform.TPU else (DType.FLOAT16,))
    return Capabilities(
        dtypes=dtypes,
        default_dtype=DType.FLOAT32 if platform is Platform.CPU else None,
        kv_dtypes=(*dtypes, *_SCALED),
        quantized_bits=_CODES,
        block_sizes=(16, 32, 64, 128, 8, 4, 2, 1),
        static_shapes=True,
        max_tensor_parallel=devices,
        asynchronous=True,
    )


def _on_lanes(platform: Platform, devices: int) -> Capabilities:
    """With the Pallas kernels, whose blocks are tiles of a TPU's memory."""
    return Capabilities(
        dtypes=(DType.BFLOAT16, DType.FLOAT32),
        default_dtype=DType.FLOAT32 if platform is Platform.CPU else None,
        kv_dtypes=(DType.BFLOAT16, DType.FLOAT32, *_SCALED),
        quantized_bits=_CODES,
        block_sizes=(64, 128, 32, 16),
        static_shapes=True,
        max_tensor_parallel=devices,
        asynchronous=True,
    )
