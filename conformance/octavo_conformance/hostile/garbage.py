"""What stands in memory that nobody has written: NaN, and numbers that no sum survives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from octavo.backend import DType

_LARGEST = {
    DType.FLOAT32: 1e30,
    DType.BFLOAT16: 1e30,
    DType.FLOAT16: 6e4,
    DType.FLOAT8_E5M2: 5e4,
    DType.FLOAT8_E4M3: 4e2,
    DType.INT8: 1e2,
}


def garbage(
    rng: np.random.Generator,
    shape: Sequence[int],
    dtype: DType,
    through: DType | None = None,
    share_of_nan: float = 0.5,
) -> np.ndarray:
    """An array whose rows along the last axis are NaN or large numbers of either sign.

    dtype: of the result. through: a dtype that it will be converted to, and whose range it keeps to. There is no NaN
    among integers, nor where the numbers become integers.
    """
    largest = min(_LARGEST[dtype], _LARGEST[through or dtype])
    signs = 1.0 - 2.0 * rng.integers(0, 2, size=tuple(shape))
    values = signs * largest
    if DType.INT8 not in (dtype, through):
        values[rng.random(tuple(shape[:-1])) < share_of_nan] = math.nan
    return values.astype(dtype.numpy)
