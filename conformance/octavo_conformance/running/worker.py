"""A process that runs one case after another on a device of its own: `python -m octavo_conformance.running.worker`.

It reads case ids from standard input and answers on what was its standard output. Whatever a backend prints goes to
standard error, which the runner keeps and shows where the process dies.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time

import numpy as np

from octavo.backend import BackendError, Device, Probe, UnknownBackendError
from octavo.backend.discovery import AUTO, discover, open_device
from octavo_conformance.case import Case
from octavo_conformance.raised import raised
from octavo_conformance.running.execute import execute
from octavo_conformance.running.wire import Answer, Assignment, Opened, receive, send
from octavo_conformance.suite import cases
from octavo_conformance.tolerances import Tolerances
from octavo_conformance.verdict import Verdict
from octavo_conformance.workbench import Workbench

STACKS = signal.SIGUSR1
"""The signal on which a worker writes down where each of its threads is."""


def main() -> None:
    """Open the device, then answer until standard input ends or the device no longer answers."""
    faulthandler.enable()
    faulthandler.register(STACKS, all_threads=True)
    requests, answers = os.dup(0), os.dup(1)
    os.register_at_fork(after_in_child=lambda: _close(requests, answers))  # a child of a backend answers nothing
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    assignment = receive(requests, Assignment)
    known: dict[str, Case] = {case.id: case for case in cases()}  # before the device, not on the first case's time
    opened, device = _open(assignment)
    send(answers, opened)
    if device is None:
        return
    bench = Workbench(device, assignment.config, Tolerances(assignment.overrides))
    while True:
        try:
            case = known[receive(requests, str)]
        except EOFError:
            return
        outcome = execute(case, bench)
        healthy = outcome.verdict is not Verdict.FAILED or _answers(device)
        send(answers, Answer(outcome, healthy))
        if not healthy:
            return


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _end_with(runner: int) -> None:
    """End this process and what it started once the runner is gone: a hanging case must not keep the device."""
    while os.getppid() == runner:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _open(assignment: Assignment) -> tuple[Opened, Device | None]:
    """The backend's device, or why there is none."""
    discovery = discover()
    try:
        found = discovery.named(assignment.backend)
    except UnknownBackendError as error:
        return Opened(unknown=str(error)), None
    except BackendError as error:  # it is installed, and cannot be loaded
        return Opened(broken=str(error)), None
    origin = (found.package, found.version, found.backend.api_version)
    try:
        probe = found.backend.probe()  # not FoundBackend's, for which a probe that raises is a device that is not there
    except Exception as error:
        return Opened(None, *origin, broken=f"Its probe {raised(error)}"), None
    if not isinstance(probe, Probe):
        return Opened(None, *origin, broken=f"Its probe returned a {type(probe).__name__}, not a Probe."), None
    if not probe.available:
        remedy = f" To install what is missing: {probe.remedy}" if probe.remedy else ""
        return Opened(None, *origin, unavailable=probe.reason + remedy), None
    kernels = [kernel.name for kernel in probe.kernels]
    if kernels and assignment.kernel not in (AUTO, *kernels):
        unknown = f"Backend {found.name!r} has no kernel {assignment.kernel!r}; it has: {', '.join(kernels)}."
        return Opened(None, *origin, unknown=unknown), None
    try:
        device = open_device(assignment.config, discovery).device
    except Exception as error:  # a probe that promised a device is wrong, whatever `open` raised
        return Opened(None, *origin, broken=f"{type(error).__name__}: {error}"), None
    return Opened(device.info, *origin), device


def _answers(device: Device) -> bool:
    """Whether the device still takes a number and gives it back."""
    sent = np.arange(4, dtype=np.int32)
    try:
        return bool((device.download(device.upload(sent)) == sent).all())
    except Exception:  # whatever it is, it is no answer
        return False


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the runner is gone
        sys.exit(1)
