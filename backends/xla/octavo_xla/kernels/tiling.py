"""The tiles of a TPU's registers, and what its memories hold."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Ref: TypeAlias = Any
"""A reference to memory inside a kernel: Pallas has no public type for it."""

SUBLANES = 8
"""Rows of a register of 32 bits."""

VMEM_LIMIT = 16 << 20
"""Bytes of VMEM that the compiler lets a kernel have on a TPU v5e unless told otherwise; no later one has less."""

SMEM_TABLE_BYTES = 512 << 10
"""Bytes of scalar memory for block tables: half of the 1 MiB that TPUs from v4 on have."""


def packed_rows(dtype: np.dtype) -> int:
    """Rows of a tile of memory, the least that a copy may address: 8 of 32 bits, 16 of 16, 32 of 8."""
    return SUBLANES * 4 // dtype.itemsize


def round_up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple
