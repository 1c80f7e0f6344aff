"""How far a result is from the right one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Error:
    """The worst row of a comparison: its index over the leading axes, and its normalised mean squared error."""

    nmse: float
    row: tuple[int, ...]


def worst_row(got: np.ndarray, expected: np.ndarray) -> Error:
    """The row along the last axis with the largest normalised mean squared error (as ggml's test-backend-ops has it).

    The squared error of each row is divided by the larger of the row's own energy and the mean energy of all rows: one
    wrong row among thousands counts as much as alone, and a row that happens to be almost zero does not count more
    than it should. Anything that is not finite where the expected value is finite is an infinite error, and so is a
    result of another shape.
    """
    if np.shape(got) != np.shape(expected):
        return Error(math.inf, ())
    wide, right = (np.atleast_2d(np.asarray(array, np.float64)) for array in (got, expected))
    if right.size == 0:
        return Error(0.0, ())
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(wide == right, 0.0, wide - right)  # equal infinities are no error
    squared = np.sum(np.square(difference), axis=-1)
    energy = np.sum(np.square(np.where(np.isfinite(right), right, 0.0)), axis=-1)
    floor = float(np.mean(energy))
    scale = np.maximum(energy, floor if floor > 0.0 else 1.0)
    errors = np.where(np.isfinite(squared), squared / scale, math.inf)
    row = np.unravel_index(int(np.argmax(errors)), errors.shape)
    return Error(float(errors[row]), tuple(int(index) for index in row))
