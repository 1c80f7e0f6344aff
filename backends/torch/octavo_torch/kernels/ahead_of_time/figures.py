"""What a compiled kernel takes of a processor, read from what the assemblers say of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MATRIX_UNITS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma": r"\bmma\.sync",
    "mfma": r"\bv_mfma_",
    "wmma": r"\bv_wmma_",
}
"""Instructions of the matrix units, by the family's name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one compiled kernel.

    registers: 32-bit vector registers of a thread (AMD: with the accumulation registers).
    spill: bytes of a thread that did not fit into registers: NVIDIA: stored and loaded, as ptxas counts them; AMD:
        the scratch memory reserved. 0 where the assembler does not say (Intel).
    shared: bytes of shared memory of one program.
    matrix: the matrix instructions it uses, a name of MATRIX_UNITS, or "".
    seconds: compilation.
    """

    registers: int
    spill: int
    shared: int
    matrix: str
    seconds: float


def read_figures(compiled: Any, log: str, seconds: float) -> Figures:
    """Of a kernel that Triton compiled; log: what ptxas wrote with -v on the way, for a CUDA target."""
    code = compiled.asm.get("ptx") or compiled.asm.get("amdgcn") or ""
    if "ptx" in compiled.asm:
        registers = max(_numbers(r"Used (\d+) registers", log))
        spill = sum(_numbers(r"(\d+) bytes spill stores", log)) + sum(_numbers(r"(\d+) bytes spill loads", log))
    elif "amdgcn" in compiled.asm:
        registers = max(_numbers(r"\.vgpr_count:\s+(\d+)", code))
        spill = max(_numbers(r"\.private_segment_fixed_size:\s+(\d+)", code))
    else:
        registers = spill = 0
    matrix = next((name for name, pattern in MATRIX_UNITS.items() if re.search(pattern, code)), "")
    return Figures(registers, spill, compiled.metadata.shared, matrix, seconds)


def _numbers(pattern: str, text: str) -> list[int]:
    found = [int(number) for number in re.findall(pattern, text)]
    if not found:
        raise ValueError(f"The assembler's output has no line like {pattern!r}.")
    return found
