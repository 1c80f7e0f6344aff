"""What a case works with: the device, its claims, the tolerances, and the checks that become the report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from octavo.backend import Capabilities, Device, DeviceConfig, DType
from octavo.backend.discovery import open_device
from octavo_conformance.error import worst_row
from octavo_conformance.tolerances import Tolerances

PRECISE = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
"""Compute dtypes of the suite, the most precise first."""


class CaseFailure(AssertionError):  # noqa: N818  # it is what a case finds, not what goes wrong with it
    """The backend is wrong; the message says in what, by how much, and for which shapes."""


class NotClaimed(Exception):  # noqa: N818  # no error either: the case does not apply
    """The device does not do what the case needs, which only shows while it runs; the message says what."""


class Workbench:
    """One case's view of the device under test.

    device: open, and shared by the cases of one process: a case that needs one of its own calls `open`.
    rng: seeded by the case's id, so that a case sees the same numbers in every run.
    figures: what a performance case records.
    """

    def __init__(self, device: Device, config: DeviceConfig, tolerances: Tolerances, case: str = "") -> None:
        self.device = device
        self.config = config
        self.tolerances = tolerances
        self.case = case
        digest = blake2b(case.encode(), digest_size=8).digest()
        self.rng = np.random.default_rng(int.from_bytes(digest, "little"))
        self.figures: dict[str, float] = {}
        self.nmse: float | None = None
        self.tolerance: float | None = None

    def for_case(self, case: str) -> Workbench:
        """The same device for another case."""
        return Workbench(self.device, self.config, self.tolerances, case)

    def open(self, config: DeviceConfig | None = None) -> Device:
        """A device of the backend under test, for the caller to close. Raises as `open_device`."""
        return open_device(config or self.config).device

    # --------------------------------------------------------------------------------------------------- the device

    @property
    def capabilities(self) -> Capabilities:
        return self.device.info.capabilities

    @property
    def block_size(self) -> int:
        """The device's preferred block size."""
        return self.capabilities.block_sizes[0]

    @property
    def small_block_size(self) -> int:
        """The smallest block size of 4 or more that the device claims: short prompts then have borders to cross."""
        claimed = self.capabilities.block_sizes
        return min((size for size in claimed if size >= 4), default=max(claimed))

    @property
    def dtype(self) -> DType:
        """The most precise compute dtype that the device claims."""
        return next(dtype for dtype in PRECISE if dtype in self.capabilities.dtypes)

    @property
    def kv_dtype(self) -> DType:
        """The most precise KV dtype that the device claims; its compute dtype where it claims that."""
        claimed = self.capabilities.kv_dtypes
        return next((dtype for dtype in (self.dtype, *PRECISE) if dtype in claimed), claimed[0])

    @property
    def head_size(self) -> int:
        """The smallest head size of 16 or more that the device claims."""
        claimed = self.capabilities.head_sizes
        return 16 if claimed is None else min((size for size in claimed if size >= 16), default=max(claimed))

    # --------------------------------------------------------------------------------------------------- the checks

    def require(self, condition: object, message: str) -> None:
        """Fail with the message unless the condition holds."""
        if not condition:
            raise CaseFailure(message)

    def check_form(self, op: str, got: np.ndarray, shape: Sequence[int], dtype: DType, inputs: str) -> None:
        """A result's shape and dtype. `inputs` describes the operation's arguments, for the message."""
        self.require(
            isinstance(got, np.ndarray), f"{op}: downloaded a {type(got).__name__}, not a NumPy array ({inputs})."
        )
        self.require(
            got.shape == tuple(shape), f"{op}: the result has shape {got.shape}, expected {tuple(shape)} ({inputs})."
        )
        self.require(
            got.dtype == dtype.numpy,
            f"{op}: the result is {got.dtype.name}, expected {dtype.value} ({inputs}).",
        )

    def check(
        self, op: str, dtype: DType, got: np.ndarray, expected: np.ndarray, inputs: str, extra: float = 0.0
    ) -> None:
        """Shape, dtype and error of a result against the float64 `expected`, within the tolerance of op and dtype.

        extra: added to that tolerance (a KV cache's own rounding).
        """
        self.check_form(op, got, expected.shape, dtype, inputs)
        self.measure(op, dtype, got, expected, inputs, extra)

    def measure(
        self, op: str, dtype: DType, got: np.ndarray, expected: np.ndarray, inputs: str, extra: float = 0.0
    ) -> None:
        """`check` without the form: the tolerance of `dtype` for arrays whose own dtype may be another."""
        tolerance = self.tolerances.of(op, dtype) + extra
        error = worst_row(got, expected)
        if self.nmse is None or self.tolerance is None or error.nmse * self.tolerance >= self.nmse * tolerance:
            self.nmse, self.tolerance = error.nmse, tolerance
        if error.nmse <= tolerance:
            return
        raise CaseFailure(
            f"{op} in {dtype.value}: NMSE {error.nmse:.1e}, {tolerance:.1e} is allowed ({inputs}). "
            f"Row {list(error.row)} is the worst: {_excerpt(got, expected, error.row)}."
        )

    def check_equal(self, op: str, got: np.ndarray, expected: np.ndarray, inputs: str) -> None:
        """A result that has to be exact: shape, dtype and every bit (NaN equals NaN)."""
        self.check_form(op, got, expected.shape, DType.of(expected), inputs)
        same = (got == expected) | ((got != got) & (expected != expected))
        if bool(np.all(same)):
            return
        where = tuple(int(index) for index in np.argwhere(~same)[0])
        raise CaseFailure(
            f"{op}: {int(np.sum(~same))} of {same.size} entries differ where the result is exact ({inputs}). The "
            f"first is at {list(where)}: {expected[where]!s} was expected and {got[where]!s} came."
        )


def _excerpt(got: np.ndarray, expected: np.ndarray, row: tuple[int, ...]) -> str:
    """The entry of a row that is most wrong."""
    mine, right = np.atleast_2d(np.asarray(got, np.float64))[row], np.atleast_2d(np.asarray(expected, np.float64))[row]
    with np.errstate(invalid="ignore"):
        distance = np.abs(mine - right)
    worst = int(np.argmax(np.where(np.isfinite(distance), distance, np.inf)))
    return f"entry {worst} is {mine[worst]:.6g}, expected {right[worst]:.6g}"
