"""What a report holds: the structures are the file, field by field."""

from __future__ import annotations

import math
from datetime import datetime
from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.backend import DType
from octavo_conformance.case import Level
from octavo_conformance.verdict import Outcome, Verdict

SCHEMA = 1
"""Version of the file's form. It changes when a field is added, renamed or removed."""


class NonFinite(str, Enum):
    """The numbers that JSON does not have."""

    INFINITY = "inf"
    NEGATIVE_INFINITY = "-inf"
    NOT_A_NUMBER = "nan"


Figure = float | NonFinite
"""A measured number as the file has it."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A piece of a report. A field that is not known would not be covered by the digest, so it is refused."""


class Backend(Part, frozen=True, omit_defaults=False):
    """Which backend, from which package, and how it was asked for.

    kernel: the attention kernel that ran, "" where no device was opened. requested_kernel: the name that was asked for.
    """

    name: str
    package: str = ""
    version: str = ""
    kernel: str = ""
    requested_kernel: str = "auto"
    options: dict[str, str] = {}


class DeviceRecord(Part, frozen=True):
    """The device, as it describes itself."""

    name: str
    arch: str
    driver: str
    notes: tuple[str, ...] = ()


class Claims(Part, frozen=True):
    """The capabilities that the device claims; see `octavo.backend.Capabilities`."""

    dtypes: tuple[DType, ...]
    default_dtype: DType | None
    kv_dtypes: tuple[DType, ...]
    quantized_bits: tuple[int, ...]
    block_sizes: tuple[int, ...]
    head_sizes: tuple[int, ...] | None
    static_shapes: bool
    graph_capture: bool
    max_tensor_parallel: int


class Host(Part, frozen=True):
    """The machine that ran the suite. packages: versions of the packages that decide over results."""

    os: str
    machine: str
    processor: str
    python: str
    packages: dict[str, str]


class Selection(Part, frozen=True, omit_defaults=False):
    """What was asked to run. levels: all six where none was named. pattern: of case ids, "" for every case."""

    levels: tuple[Level, ...] = tuple(Level)
    pattern: str = ""
    quick: bool = False

    @property
    def every_level(self) -> bool:
        return set(self.levels) in (set(), set(Level))

    @property
    def whole(self) -> bool:
        """Whether it stands for every case of the suite."""
        return self.every_level and not self.quick and self.pattern in ("", "*")


class OverrideRecord(Part, frozen=True):
    """A tolerance that differs from the suite's table. table: what the table says."""

    op: str
    dtype: DType
    nmse: float
    table: float
    reason: str


class ExpectedFailureRecord(Part, frozen=True):
    """Cases, by pattern, whose failure was announced."""

    case: str
    reason: str


class Result(Part, frozen=True):
    """One case. nmse, tolerance, figures: see `Outcome`; seconds: what the case took."""

    case: str
    verdict: Verdict
    reason: str = ""
    nmse: Figure | None = None
    tolerance: float | None = None
    seconds: float = 0.0
    figures: dict[str, Figure] = {}

    @property
    def error(self) -> float | None:
        """`nmse` as a number."""
        return None if self.nmse is None else float(self.nmse)

    @property
    def share(self) -> float | None:
        """The error in parts of its tolerance: more than 1 is too much. None where the case compares nothing."""
        if self.nmse is None or self.tolerance is None:
            return None
        error = float(self.nmse)
        if self.tolerance > 0.0:
            return error / self.tolerance
        return 0.0 if error == 0.0 else math.inf


class Report(Part, frozen=True):
    """One run of the suite on one backend.

    device, capabilities: None where no device could be opened. results: in the order of the suite, one for every case
    that the selection stands for. cases_digest: SHA-256 over their ids. results_digest: SHA-256 over all the rest. Both
    are made when a report is written (`digest.seal`) and "" before.
    """

    schema: int
    suite_version: str
    api_version: int
    octavo_version: str
    date: Annotated[datetime, Meta(tz=True)]
    backend: Backend
    device: DeviceRecord | None
    capabilities: Claims | None
    host: Host
    selection: Selection
    overrides: tuple[OverrideRecord, ...]
    expected_failures: tuple[ExpectedFailureRecord, ...]
    results: tuple[Result, ...]
    cases_digest: str = ""
    results_digest: str = ""


def result_of(outcome: Outcome) -> Result:
    """An outcome as the report keeps it: three digits of a figure, milliseconds of a time."""
    return Result(
        case=outcome.case,
        verdict=outcome.verdict,
        reason=outcome.reason,
        nmse=None if outcome.nmse is None else figure(outcome.nmse),
        tolerance=None if outcome.tolerance is None else float(f"{outcome.tolerance:.3g}"),
        seconds=round(outcome.seconds, 3),
        figures={name: figure(value) for name, value in outcome.figures.items()},
    )


def figure(value: float) -> Figure:
    """A number with three significant digits, or the name of one that JSON does not have."""
    if math.isnan(value):
        return NonFinite.NOT_A_NUMBER
    if math.isinf(value):
        return NonFinite.INFINITY if value > 0 else NonFinite.NEGATIVE_INFINITY
    return float(f"{value:.3g}")
