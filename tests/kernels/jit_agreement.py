"""Prints where our specialisation of the catalog's launches differs from Triton's own; run by `test_ahead_of_time`.

Triton launches on a driver that is not there, as far as its hook before a compilation.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from triton import knobs
from triton.runtime.driver import driver

from octavo_torch.kernels.ahead_of_time.specialise import gpu_target, specialised
from octavo_torch.kernels.catalog import CATALOG
from octavo_torch.kernels.launch import KernelRuntime, Launch, Recorder
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import TuningTable


class AbsentDriver:
    """A device for each target, and none of them there."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return gpu_target(self.target)

    def get_current_device(self) -> str:
        return self.target.arch

    def get_current_stream(self, device: str) -> int:
        return 0


def seen_by_triton(launch: Launch) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def hook(*, compile: dict[str, Any], **_: Any) -> bool:
        seen.append(compile)
        return True  # no need to compile

    knobs.runtime.jit_cache_hook = hook
    launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments, **launch.options)
    (compilation,) = seen
    return compilation


def main() -> None:
    launches, differences = 0, []
    for arch in ("sm_90", "gfx942"):
        target = TARGETS[arch]
        driver.set_active(AbsentDriver(target))
        for kernel in CATALOG:
            for specimen in kernel.specimens():
                recorder = Recorder()
                specimen.call(KernelRuntime(target, TuningTable(), recorder))
                for launch in recorder.launches:
                    ours, triton = specialised(launch, target).source, seen_by_triton(launch)
                    launches += 1
                    same = (ours.signature, ours.constants, [ours.attrs]) == (
                        triton["signature"],
                        triton["constants"],
                        triton["configs"],
                    )
                    if not same or any(triton[name] != value for name, value in launch.options.items()):
                        differences.append(f"{arch} {kernel.name} {specimen.name} {launch.kernel.__name__}")
    json.dump({"launches": launches, "differences": differences}, sys.stdout)


if __name__ == "__main__":
    main()
