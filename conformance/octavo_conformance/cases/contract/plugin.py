"""The plugin: its version, how it is found, what its probe says, and whether the probe is honest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from octavo.backend import BackendError, Kernel, Probe
from octavo.backend.discovery import FoundBackend, discover
from octavo.backend.hooks import ENTRY_POINT_GROUP
from octavo.backend.version import API_VERSION, OLDEST_API_VERSION, accepts
from octavo_conformance.case import Case
from octavo_conformance.workbench import CaseFailure, Workbench

FRAMEWORKS = ("torch", "jax", "tensorflow", "triton", "cupy", "transformers")
"""What takes seconds to import: `octavo backends` loads every plugin that is installed."""

NO_KERNEL = "no-such-kernel"


def cases() -> Iterator[Case]:
    yield Case("contract/version/api_version", _api_version, quick=True)
    yield Case("contract/discovery/entry_point", _entry_point, quick=True)
    yield Case("contract/discovery/imports_no_framework", _imports_no_framework, quick=True)
    yield Case("contract/probe/opens_no_device", _opens_no_device, quick=True)
    yield Case("contract/probe/form", _probe_form, quick=True)
    yield Case("contract/probe/available_opens", _available_opens, quick=True)
    yield Case("contract/kernels/selected", _selected, quick=True)
    yield Case("contract/kernels/available_open", _available_kernels_open, quick=True)
    yield Case("contract/kernels/unavailable_are_refused", _unavailable_kernels_are_refused, quick=True)
    yield Case("contract/kernels/unknown_is_refused", _unknown_kernel_is_refused, quick=True)


def _api_version(bench: Workbench) -> None:
    version = _found(bench).backend.api_version
    bench.require(
        isinstance(version, int) and not isinstance(version, bool),
        f"Backend.api_version is {version!r}; it is an integer literal, the version the plugin was written for.",
    )
    bench.require(
        accepts(version),
        f"Backend.api_version is {version}; this core speaks versions {OLDEST_API_VERSION} to {API_VERSION}.",
    )


def _entry_point(bench: Workbench) -> None:
    found = _found(bench)
    bench.require(
        found.name == found.name.strip().lower() and found.name,
        f"The backend is named {found.name!r}; a name is what people type: lower case, without spaces around it.",
    )
    bench.require(
        isinstance(found.backend.summary, str) and found.backend.summary,
        "Backend.summary is empty; `octavo backends` prints it.",
    )
    bench.require(
        _plugins(found),
        f"Package {found.package!r}, which offers backend {found.name!r}, has no entry point in the group "
        f"{ENTRY_POINT_GROUP}.",
    )


# ------------------------------------------------------------------------------------------ in a process of its own

_LOOK = """
import json, sys
from importlib.metadata import EntryPoint
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from octavo.backend import Device
opened = []
def watched(cls, *args, **kwargs):
    opened.append(cls.__name__)
    return object.__new__(cls)
Device.__new__ = watched
backends = []
for name, value in request["plugins"]:
    plugin = EntryPoint(name, value, request["group"]).load()
    backends += plugin.octavo_backends()
imported = [name for name in request["frameworks"] if name in sys.modules]
probes = []
for backend in backends:
    if backend.name == request["backend"]:
        try:
            probes = [repr(backend.probe()) for _ in range(2)]
        except BaseException as error:
            probes = [f"raised {type(error).__name__}: {error}"]
print(json.dumps({"imported": imported, "opened": opened, "probes": probes}))
"""


def _imports_no_framework(bench: Workbench) -> None:
    imported = _look(bench)["imported"]
    bench.require(
        not imported,
        f"Loading the entry point and asking it for its backends imports {', '.join(imported)}; a plugin imports its "
        "framework in probe() or open(), so that a list of backends is quick and a broken framework harms only its own "
        "backend.",
    )


def _opens_no_device(bench: Workbench) -> None:
    seen = _look(bench)
    bench.require(
        not seen["opened"],
        f"probe() made a {', '.join(seen['opened'])}; a probe says what is there without opening a device.",
    )
    probes = seen["probes"]
    bench.require(probes, f"A new process does not find backend {bench.device.info.backend!r} in its own entry point.")
    bench.require(not probes[0].startswith("raised"), f"probe() {probes[0]}; what is missing belongs in Probe.reason.")
    bench.require(probes[0] == probes[-1], f"Two probes in a row differ: {probes[0]}, then {probes[-1]}.")


def _look(bench: Workbench) -> Any:
    """Load the plugin and probe it where nothing else was imported before."""
    found = _found(bench)
    request = {
        "path": sys.path,
        "plugins": _plugins(found),
        "group": ENTRY_POINT_GROUP,
        "backend": found.name,
        "frameworks": FRAMEWORKS,
    }
    command = [sys.executable, "-c", _LOOK, json.dumps(request)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise CaseFailure(f"A new process that loads the plugin and probes it ends with {ended.returncode}: {last}")
    # Frameworks greet on standard output, too: the answer is the last line.
    return json.loads(ended.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------------------- its honesty


def _probe_form(bench: Workbench) -> None:
    probe = _probe(bench)
    bench.require(isinstance(probe.available, bool), f"Probe.available is {probe.available!r}; it is True or False.")
    bench.require(
        isinstance(probe.reason, str) and probe.reason,
        "Probe.reason is empty; it is a sentence, whichever way it goes.",
    )
    bench.require(isinstance(probe.remedy, str), f"Probe.remedy is {probe.remedy!r}; it is a command, or empty.")
    bench.require(
        isinstance(probe.devices, tuple) and all(isinstance(name, str) for name in probe.devices),
        f"Probe.devices is {probe.devices!r}; it is a tuple of names.",
    )
    bench.require(
        isinstance(probe.kernels, tuple) and all(isinstance(kernel, Kernel) for kernel in probe.kernels),
        f"Probe.kernels is {probe.kernels!r}; it is a tuple of Kernel.",
    )
    names = [kernel.name for kernel in probe.kernels]
    bench.require(len(set(names)) == len(names), f"Probe.kernels lists a name twice: {', '.join(names)}.")
    silent = [kernel.name for kernel in probe.kernels if not kernel.reason]
    bench.require(not silent, f"Kernel.reason of {', '.join(silent)} is empty; it says why it can or cannot run here.")


def _available_opens(bench: Workbench) -> None:
    probe = _probe(bench)
    bench.require(
        probe.available, f"The probe says that the backend is not available, and its device is open: {probe.reason}"
    )
    try:
        bench.open().close()
    except BackendError as error:
        raise CaseFailure(f"The probe says that the backend is available, and it does not open: {error}") from error


def _selected(bench: Workbench) -> None:
    kernels = _probe(bench).kernels
    selected = [kernel for kernel in kernels if kernel.selected]
    names = ", ".join(kernel.name for kernel in selected)
    bench.require(len(selected) <= 1, f"The probe marks several kernels as selected: {names}.")
    bench.require(
        all(kernel.available for kernel in selected), f"The probe selects kernel {names}, which is not available."
    )
    device = bench.open(replace(bench.config, kernel="auto"))
    running = device.info.kernel
    device.close()
    if kernels:
        known = ", ".join(kernel.name for kernel in kernels)
        bench.require(
            running in [kernel.name for kernel in kernels],
            f"DeviceInfo.kernel is {running!r}, which the probe does not list; it lists {known}.",
        )
    if selected:
        bench.require(
            running == selected[0].name,
            f'With kernel = "auto" kernel {running!r} runs; the probe said that {selected[0].name!r} would.',
        )


def _available_kernels_open(bench: Workbench) -> None:
    for kernel in _probe(bench).kernels:
        if not kernel.available:
            continue
        try:
            device = bench.open(replace(bench.config, kernel=kernel.name))
        except BackendError as error:
            raise CaseFailure(f"Kernel {kernel.name!r} is listed as available and does not open: {error}") from error
        running = device.info.kernel
        device.close()
        bench.require(
            running == kernel.name,
            f"Kernel {kernel.name!r} was asked for and DeviceInfo.kernel is {running!r}: a kernel that is named is "
            "used or refused, never replaced.",
        )


def _unavailable_kernels_are_refused(bench: Workbench) -> None:
    refused = [kernel.name for kernel in _probe(bench).kernels if not kernel.available]
    for name in refused:
        _refused(bench, name, "the probe lists as not available")


def _unknown_kernel_is_refused(bench: Workbench) -> None:
    _refused(bench, NO_KERNEL, "does not exist")


def _refused(bench: Workbench, kernel: str, why: str) -> None:
    try:
        device = bench.open(replace(bench.config, kernel=kernel))
    except BackendError as error:
        bench.require(str(error), f"Kernel {kernel!r} is refused with {type(error).__name__} and no sentence.")
        return
    running = device.info.kernel
    device.close()
    raise CaseFailure(
        f"Kernel {kernel!r}, which {why}, was asked for and a device with kernel {running!r} opened: it is refused "
        "with a BackendUnavailableError."
    )


# ---------------------------------------------------------------------------------------------------------- helpers


def _found(bench: Workbench) -> FoundBackend:
    return discover().named(bench.device.info.backend if bench.config.backend == "auto" else bench.config.backend)


def _probe(bench: Workbench) -> Probe:
    """What the backend's own probe says, unsoftened: `FoundBackend.probe` turns what it raises into a reason."""
    found = _found(bench)
    try:
        probe = found.backend.probe()
    except Exception as error:
        raise CaseFailure(
            f"probe() raised {type(error).__name__}: {error}; a reason belongs in Probe.reason."
        ) from error
    if not isinstance(probe, Probe):
        raise CaseFailure(f"probe() returned a {type(probe).__name__}, not a Probe.")
    return probe


def _plugins(found: FoundBackend) -> Sequence[tuple[str, str]]:
    """Name and value of the entry points of the package that offers this backend."""
    return [
        (entry.name, entry.value)
        for entry in entry_points(group=ENTRY_POINT_GROUP)
        if entry.dist is not None and entry.dist.name == found.package
    ]
