"""What every kernel of this package says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.tuning import Tunable


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call has to do at the least.

    read, written: bytes of device memory, each input read once and each output written once. flops: floating-point
    operations, a multiplication and an addition counted as two.
    """

    read: int
    written: int
    flops: int

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True, slots=True)
class Specimen:
    """A call that stands for the shapes a kernel is compiled for.

    name: in tables, "bfloat16,head_size=128". call: makes the call on meta tensors.
    """

    name: str
    call: Callable[[KernelRuntime], Any]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the catalog.

    name: as in tuning tables and budgets. reference: the operation of the contract that defines it. tunables: what
    tables may choose for it. specimens: calls that cover every code path, dtype and size it is meant for.
    """

    name: str
    reference: Callable[..., Any]
    tunables: tuple[Tunable, ...]
    specimens: Callable[[], Iterator[Specimen]]
