"""The architectures the kernels are tuned and compiled for, with the figures of a card that has them.

A device that is at hand says its own shared memory and processors; these stand for it where there is none: for the
ahead-of-time check and under the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from octavo_torch.kernels.target import Target

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.arch: target
        for target in (
            # NVIDIA: the shared memory is what one block may ask for ("opt-in"), 1 KB less than a multiprocessor has.
            Target("cuda", "sm_80", warp_size=32, shared_memory=163 << 10, processors=108),  # A100
            Target("cuda", "sm_89", warp_size=32, shared_memory=99 << 10, processors=128),  # RTX 4090; L40S has 142
            Target("cuda", "sm_90", warp_size=32, shared_memory=227 << 10, processors=132),  # H100, H200
            Target("cuda", "sm_100", warp_size=32, shared_memory=227 << 10, processors=148),  # B200
            # AMD: CDNA has wavefronts of 64, RDNA is compiled for 32.
            Target("hip", "gfx90a", warp_size=64, shared_memory=64 << 10, processors=104),  # MI210, half an MI250
            Target("hip", "gfx942", warp_size=64, shared_memory=64 << 10, processors=304),  # MI300X, MI325X
            Target("hip", "gfx950", warp_size=64, shared_memory=160 << 10, processors=256),  # MI350X, MI355X
            Target("hip", "gfx1100", warp_size=32, shared_memory=64 << 10, processors=96),  # RX 7900 XTX
            Target("hip", "gfx1201", warp_size=32, shared_memory=64 << 10, processors=64),  # RX 9070 XT
            # Intel: one stack of a Data Center GPU Max.
            Target("xpu", "pvc", warp_size=32, shared_memory=128 << 10, processors=64),
        )
    }
)
"""By name of the architecture."""

BACKENDS: Mapping[str, str] = MappingProxyType({"cuda": "cuda", "hip": "rocm", "xpu": "xpu"})
"""The backend of each of Triton's code generators; its package has the tuning table, `tuning.toml`."""
