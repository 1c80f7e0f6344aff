"""What kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture, as much of it as a kernel's launch depends on.

    generator: Triton's name of the code generator: "cuda", "hip" or "xpu".
    arch: "sm_90", "gfx942", "pvc".
    warp_size: threads that run in lockstep (a warp, wavefront or sub-group).
    shared_memory: bytes of shared memory (LDS, SLM) that one program may use.
    processors: units that run programs side by side (streaming multiprocessors, compute units, Xe cores).
    interpreted: the kernels run in Triton's interpreter on the host, for tests.
    """

    generator: str
    arch: str
    warp_size: int
    shared_memory: int
    processors: int
    interpreted: bool = False
