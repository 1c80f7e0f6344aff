"""One thing that a backend has to do, and what it must claim to be asked for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

from octavo.backend import DType

if TYPE_CHECKING:
    from octavo_conformance.workbench import Workbench

_ID = re.compile(r"[a-z]+/[a-z0-9_]+(/[A-Za-z0-9_.,=x+-]+)*")


class Level(str, Enum):
    """What a case looks at, from the cheapest to the most expensive."""

    CONTRACT = "contract"  # discovery, probe, capabilities, arrays, memory
    OPS = "ops"  # each operation against a float64 oracle
    STEP = "step"  # logits of whole tiny models against transformers
    ENGINE = "engine"  # generation: parity, preemption, prefix cache, copy-on-write
    INVARIANCE = "invariance"  # the same tokens whatever happens around a request, and on every backend
    PERFORMANCE = "performance"  # recorded, not judged


class Claims(Protocol):
    """As much of a device's capabilities as a case may need: `octavo.backend.Capabilities`, or what a report has."""

    @property
    def dtypes(self) -> tuple[DType, ...]: ...
    @property
    def kv_dtypes(self) -> tuple[DType, ...]: ...
    @property
    def quantized_bits(self) -> tuple[int, ...]: ...
    @property
    def block_sizes(self) -> tuple[int, ...]: ...
    @property
    def head_sizes(self) -> tuple[int, ...] | None: ...
    @property
    def max_tensor_parallel(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Needs:
    """The capabilities that a case exercises. A device that does not claim one of them is not asked: `missing`."""

    dtypes: tuple[DType, ...] = ()
    kv_dtypes: tuple[DType, ...] = ()
    quantized_bits: tuple[int, ...] = ()
    block_sizes: tuple[int, ...] = ()
    head_sizes: tuple[int, ...] = ()
    shards: int = 1

    @classmethod
    def of_cache(
        cls, kv_dtype: DType, block_size: int | None, head_size: int | None, dtypes: tuple[DType, ...] = ()
    ) -> Needs:
        """What a case over a KV cache needs. A size of None is the device's own choice, which is always claimed."""
        return cls(
            dtypes=dtypes,
            kv_dtypes=(kv_dtype,),
            block_sizes=() if block_size is None else (block_size,),
            head_sizes=() if head_size is None else (head_size,),
        )

    def missing(self, claimed: Claims) -> str:
        """The sentence that says which capability is not claimed, or "" where all are."""
        return (
            _unclaimed("compute dtype", self.dtypes, claimed.dtypes)
            or _unclaimed("KV cache dtype", self.kv_dtypes, claimed.kv_dtypes)
            or _unclaimed("quantized bits", self.quantized_bits, claimed.quantized_bits)
            or _unclaimed("block size", self.block_sizes, claimed.block_sizes)
            or ("" if claimed.head_sizes is None else _unclaimed("head size", self.head_sizes, claimed.head_sizes))
            or self._missing_shards(claimed)
        )

    def _missing_shards(self, claimed: Claims) -> str:
        if self.shards <= claimed.max_tensor_parallel:
            return ""
        return f"{self.shards} shards are not claimed; max_tensor_parallel is {claimed.max_tensor_parallel}"


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the suite.

    id: "level/subject/variant/...", stable and unique: it is how reports, must-pass lists and `--case` name it. On
        level `ops` the subject is the operation.
    run: raises `workbench.CaseFailure` where the backend is wrong; any other exception is a failure too.
    dtype: the column in which the report's matrix shows it, None where the case is about no dtype.
    quick: part of the quick set. limit: seconds after which it counts as hanging.
    """

    id: str
    run: Callable[[Workbench], None] = field(repr=False, compare=False)
    needs: Needs = Needs()
    dtype: DType | None = None
    quick: bool = False
    limit: float = 60.0

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is no case id: it is level/subject/variant, of letters, digits and _.,=x+-")
        Level(self.id.split("/")[0])

    @property
    def level(self) -> Level:
        return Level(self.id.split("/")[0])

    @property
    def subject(self) -> str:
        """What the case is about: the operation on level `ops`."""
        return self.id.split("/")[1]


def matches(case: str, pattern: str) -> bool:
    """Whether a case's id matches a pattern: * stands for any text, and a space for "or". An empty one matches all."""
    return not pattern.strip() or any(fnmatchcase(case, part) for part in pattern.split())


def _unclaimed(what: str, needed: Sequence[object], claimed: Sequence[object]) -> str:
    for value in needed:
        if value not in claimed:
            claims = ", ".join(_text(other) for other in claimed) or "none"
            return f"{what} {_text(value)} is not claimed (claimed: {claims})"
    return ""


def _text(value: object) -> str:
    return value.value if isinstance(value, DType) else str(value)
