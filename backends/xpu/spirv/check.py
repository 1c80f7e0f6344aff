"""Compiles every kernel to SPIR-V for an Intel Data Center GPU Max, on a machine that has none.

    python -m pip install --no-deps --pre --target build/triton-xpu triton-xpu==3.3.0b1
    PYTHONPATH=build/triton-xpu python backends/xpu/spirv/check.py

triton-xpu takes the place of Triton, so it lies in a folder of its own and goes before the installed one. It is a
pre-release of an older Triton, and the newest that the package index has for Linux. Registers and spills are known only
to Intel's driver, which turns SPIR-V into machine code where a card is; shared memory is checked here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from octavo_torch.kernels.ahead_of_time.rows import WatchedTable, dead_rows
from octavo_torch.kernels.catalog import CATALOG, tunables
from octavo_torch.kernels.launch import KernelRuntime, Launch, Recorder
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import TuningTable

TARGET = TARGETS["pvc"]
TUNING = Path(__file__).parents[1] / "octavo_xpu" / "tuning.toml"
SPIRV_MAGIC = bytes.fromhex("03022307")
PROPERTIES = {
    "name": "Intel(R) Data Center GPU Max 1550",
    "architecture": 0,
    "sub_group_sizes": [16, 32],
    "max_work_group_size": 1024,
    "max_num_sub_groups": 64,
    "has_fp64": True,
    "has_subgroup_matrix_multiply_accumulate": True,
    "has_subgroup_matrix_multiply_accumulate_tensor_float32": True,
    "has_subgroup_2d_block_io": True,
    "has_bfloat16_conversions": True,
}
"""What Triton asks a device for, as such a card answers."""


class AbsentDriver:
    """Triton's view of a device that is not there: enough to compile for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("xpu", PROPERTIES, TARGET.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class ArchitectureNames:
    """In the place of a small library that Triton would build against SYCL's headers to look up one name."""

    def parse_device_arch(self, architecture: int) -> str:
        return TARGET.arch


@dataclass(frozen=True, slots=True)
class Entry:
    """A launch of a specimen, or why there is none."""

    name: str
    launch: Launch | str


@dataclass(frozen=True, slots=True)
class Outcome:
    """size: bytes of SPIR-V. problem: "" where all is well."""

    size: int = 0
    shared: int = 0
    seconds: float = 0.0
    problem: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel to SPIR-V.")
    parser.add_argument("--kernel", nargs="+", default=[kernel.name for kernel in CATALOG], metavar="NAME")
    asked = parser.parse_args().kernel
    if "intel" not in backends:
        print(f"This is Triton {triton.__version__}, which does not compile for Intel: put triton-xpu on PYTHONPATH.")
        return 2
    initialise = backends["intel"].compiler.__init__.__globals__
    initialise["compile_module_from_src"] = lambda *_: ArchitectureNames()
    driver.set_active(AbsentDriver())
    kernels = [kernel for kernel in CATALOG if kernel.name in asked]
    table = WatchedTable(TuningTable.read(TUNING, tunables()).rows)
    problems = 0
    start, launches = time.perf_counter(), 0
    for entry in entries(kernels, table):
        outcome = compiled(entry)
        launches += 1
        problems += bool(outcome.problem)
        said = outcome.problem or f"{outcome.size} bytes, {outcome.shared} shared, {outcome.seconds:.1f} s"
        print(f"{entry.name}: {said}", flush=True)
    for line in dead_rows(table, [TARGET], kernels):
        problems += 1
        print(line)
    print(
        f"triton-xpu {triton.__version__}: {launches} launches of {len(kernels)} kernels to SPIR-V for {TARGET.arch}, "
        f"{problems} problems, {time.perf_counter() - start:.0f} s"
    )
    return 1 if problems else 0


def entries(kernels: list[Any], table: TuningTable) -> Iterator[Entry]:
    for kernel in kernels:
        for specimen in kernel.specimens():
            name = f"{kernel.name}: {specimen.name}"
            recorder = Recorder()
            try:
                specimen.call(KernelRuntime(TARGET, table, recorder))
            except Exception as error:
                yield Entry(name, f"{type(error).__name__}: {error}")
                continue
            for launch in recorder.launches:
                yield Entry(f"{name}: {launch.kernel.__name__}", launch)


def compiled(entry: Entry) -> Outcome:
    """Compile in a process of its own: a code generator that crashes takes one kernel with it."""
    if isinstance(entry.launch, str):
        return Outcome(problem=entry.launch)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(entry.launch, sender), daemon=True)
    process.start()
    sender.close()
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(problem=f"the compiler's process ended with {process.exitcode}")
    process.join()
    return outcome


def _compile(launch: Launch, sender: Connection) -> None:
    start = time.perf_counter()
    try:
        made = launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments, **launch.options)
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        sender.send(Outcome(problem=f"{type(error).__name__}: {error}"))
        return
    code, shared = made.asm["spv"], made.metadata.shared
    problem = ""
    if not code.startswith(SPIRV_MAGIC):
        problem = "what came out is no SPIR-V."
    elif shared > TARGET.shared_memory:
        problem = f"takes {shared} bytes of shared memory, and there are {TARGET.shared_memory}."
    sender.send(Outcome(len(code), shared, time.perf_counter() - start, problem))


if __name__ == "__main__":
    sys.exit(main())
