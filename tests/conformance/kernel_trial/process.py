"""Runs cases of the suite on the kernels of a folder, under Triton's interpreter, in a process of their own.

Triton decides when it is imported whether it interprets, and a process has one package of a name. As a module that is
run, this is the other end: the ids of cases come as lines; the path of the package goes out, then each outcome at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BACKEND = "cuda"
"""The kernels are shared: under the interpreter any of the three backends runs them."""

ABORTED = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT})
"""How a process ends whose kernel reads or writes where nothing is."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a case. failure: what was wrong; "" for nothing."""

    case: str
    failure: str


def tried(folder: Path, ids: Sequence[str]) -> Generator[Tried, None, None]:
    """The cases in their order, on the package in `folder`; the last one is that in which the process ends.

    Raises RuntimeError where it ends otherwise: an exception, unlike a wrong result, is not what a fault is for.
    """
    paths = (str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    # What overflows does so on purpose.
    command = [sys.executable, "-W", "ignore", "-m", "kernel_trial.process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("\n".join(ids))
            process.stdin.close()
            package = process.stdout.readline().strip()
            if package and not Path(package).is_relative_to(folder):
                raise RuntimeError(f"{package} was imported, not the copy in {folder}.")
            done = 0
            for line in process.stdout:
                yield Tried(**json.loads(line))
                done += 1
            code = process.wait()
            if -code in ABORTED:
                yield Tried(ids[done], f"The process ended with {signal.Signals(-code).name}.")
            elif code:
                raise RuntimeError(f"The process of the cases ended with {code}; above is what it said.")
        finally:
            process.kill()


def main() -> None:
    import octavo_torch
    from octavo.backend import DeviceConfig
    from octavo.backend.discovery import open_device
    from octavo_conformance.suite import cases
    from octavo_conformance.tolerances import Tolerances
    from octavo_conformance.workbench import CaseFailure, Workbench

    print(octavo_torch.__file__, flush=True)
    config = DeviceConfig(backend=BACKEND)
    bench = Workbench(open_device(config).device, config, Tolerances())
    known = {case.id: case for case in cases()}
    for name in sys.stdin.read().split():
        failure = ""
        if not known[name].needs.missing(bench.capabilities):
            try:
                known[name].run(bench.for_case(name))
            except CaseFailure as wrong:
                if isinstance(wrong.__cause__, Exception) and not isinstance(wrong.__cause__, CaseFailure):
                    raise  # the kernel raised, and the case tells of it
                failure = str(wrong) or "It failed."
        print(json.dumps(asdict(Tried(name, failure))), flush=True)


if __name__ == "__main__":
    main()
