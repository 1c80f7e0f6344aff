"""Element types that cross the contract, independent of any array library."""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np


class DType(str, Enum):
    """An element type, by the name that NumPy (with ml_dtypes), PyTorch and JAX share."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype; bfloat16 and float8 are those of ml_dtypes."""
        extended = getattr(ml_dtypes, self.value, None)
        return np.dtype(self.value if extended is None else extended)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.numpy.itemsize)

    @classmethod
    def of(cls, array: np.ndarray) -> DType:
        """The DType of a NumPy array. Raises ValueError for one that does not cross the contract."""
        try:
            return cls(array.dtype.name)
        except ValueError:
            names = ", ".join(dtype.value for dtype in cls)
            raise ValueError(f"Arrays of {array.dtype.name} do not cross the contract; {names} do.") from None
