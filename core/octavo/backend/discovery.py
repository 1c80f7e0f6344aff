"""Finding backends, saying what was found, and opening one.

A plugin that cannot be loaded is kept with its traceback, never skipped in silence; a backend asked for by name is
opened or refused with a sentence, never replaced by another.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from octavo.backend.device import Device, DeviceConfig, DeviceInfo
from octavo.backend.errors import (
    ApiVersionError,
    BackendError,
    BackendUnavailableError,
    UnknownBackendError,
    UnsupportedError,
)
from octavo.backend.hooks import ENTRY_POINT_GROUP, PROJECT, Backend, BackendSpec, Probe
from octavo.backend.version import API_VERSION, OLDEST_API_VERSION, accepts

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class FoundBackend:
    """A backend that loaded, and the package it came from."""

    backend: Backend
    package: str
    version: str

    @property
    def name(self) -> str:
        return self.backend.name

    def probe(self) -> Probe:
        """What the backend finds here; a probe that raises is an unavailable backend that says why."""
        try:
            probe = self.backend.probe()
        except (Exception, SystemExit) as error:
            return Probe(False, f"Its probe failed: {type(error).__name__}: {error}")
        if not isinstance(probe, Probe):
            return Probe(False, f"Its probe returned {type(probe).__name__} where a Probe is expected.")
        return probe


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """A plugin that is installed and cannot be used: the reason in a sentence, and the traceback where there is one."""

    name: str
    package: str
    version: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Discovery:
    """All that was found in the entry-point group `octavo.backends`."""

    backends: tuple[FoundBackend, ...]
    failures: tuple[FailedPlugin, ...]

    def named(self, name: str) -> FoundBackend:
        """The backend of that name.

        Raises UnknownBackendError (listing those that are installed), or ApiVersionError / BackendUnavailableError with
        the reason when a plugin of that name is installed but was refused.
        """
        for found in self.backends:
            if found.name == name:
                return found
        for failure in self.failures:
            if failure.name == name:
                error = BackendUnavailableError if failure.traceback else ApiVersionError
                raise error(f"Backend {name!r} of package {failure.package} cannot be used: {failure.reason}")
        names = ", ".join(sorted(found.name for found in self.backends)) or "none"
        raise UnknownBackendError(
            f"There is no backend {name!r}; installed are: {names}. A backend is a package of its own, found through "
            f"the entry-point group {ENTRY_POINT_GROUP}: install the one you need."
        )


@dataclass(frozen=True, slots=True)
class OpenedDevice:
    """A device and the sentence that says why it is this one."""

    device: Device
    package: str
    version: str
    reason: str


def discover() -> Discovery:
    """Load every plugin of the entry-point group and ask it for its backends."""
    offers: list[tuple[str, FoundBackend]] = []
    failures: list[FailedPlugin] = []
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        package, version = _distribution(entry)
        try:
            offered = _ask(entry.load(), entry.name)
        except (Exception, SystemExit) as error:  # a module that exits when imported must not end the server
            reason = f"{type(error).__name__}: {error}"
            failures.append(FailedPlugin(entry.name, package, version, reason, traceback.format_exc()))
            continue
        offers += [(entry.name, FoundBackend(backend, package, version)) for backend in offered]
    backends: list[FoundBackend] = []
    # Where two offer one name, the plugin whose entry point has that name too goes first: nobody takes it in passing.
    for _, found in sorted(offers, key=lambda offer: offer[0] != offer[1].name):
        refusal = _refusal(found.backend, backends)
        if refusal:
            failures.append(FailedPlugin(found.name, found.package, found.version, refusal))
        else:
            backends.append(found)
    return Discovery(tuple(sorted(backends, key=lambda found: found.name)), tuple(failures))


def open_device(config: DeviceConfig, discovery: Discovery | None = None) -> OpenedDevice:
    """Open the backend that `config` names, or with "auto" the available one of the highest priority.

    Raises UnknownBackendError, ApiVersionError, BackendUnavailableError, UnsupportedError for more shards than the
    device claims, or what the backend itself raises.
    """
    discovery = discover() if discovery is None else discovery
    if config.backend == AUTO:
        found, reason = _choose(discovery)
    else:
        found, reason = discovery.named(config.backend), "asked for by name"
        probe = found.probe()
        if not probe.available:
            remedy = f" To install what is missing: {probe.remedy}" if probe.remedy else ""
            raise BackendUnavailableError(f"Backend {found.name!r} is not available here: {probe.reason}{remedy}")
    _check_kernel(found, config.kernel)
    try:
        device = found.backend.open(config)
    except BackendError:
        raise
    except (Exception, SystemExit) as error:
        raise BackendUnavailableError(
            f"Backend {found.name!r} failed to open its device: {type(error).__name__}: {error}"
        ) from error
    _check_device(found.name, device)
    _check_shards(found.name, device, config)
    return OpenedDevice(device, found.package, found.version, f"Backend {found.name!r}: {reason}.")


def _check_device(name: str, device: object) -> None:
    """Say what a backend's device lacks before core trips over it."""
    if not isinstance(device, Device):
        raise BackendError(f"Backend {name!r} opened a {type(device).__name__} where a Device is expected.")
    info = getattr(device, "info", None)
    if not isinstance(info, DeviceInfo):
        raise BackendError(f"The device of backend {name!r} has no info; it sets self.info to a DeviceInfo.")
    for claim in ("dtypes", "kv_dtypes", "block_sizes"):
        if not getattr(info.capabilities, claim):
            raise BackendError(f"The device of backend {name!r} claims no {claim}; at least one is needed.")


def _check_shards(name: str, device: Device, config: DeviceConfig) -> None:
    """Refuse more shards than the device claims, whatever its `open` made of them."""
    most = device.info.capabilities.max_tensor_parallel
    if config.tensor_parallel_size > most:
        device.close()
        raise UnsupportedError(
            f"tensor_parallel_size is {config.tensor_parallel_size}; backend {name!r} does at most {most}."
        )


def _check_kernel(found: FoundBackend, kernel: str) -> None:
    """Refuse a kernel that the backend's probe does not list as available, before a device is opened for it."""
    if kernel == AUTO:
        return
    kernels = found.probe().kernels
    if not kernels:  # a backend that lists none checks the name itself
        return
    for known in kernels:
        if known.name == kernel and known.available:
            return
        if known.name == kernel:
            raise BackendUnavailableError(
                f"Kernel {kernel!r} of backend {found.name!r} is not available here: {known.reason}"
            )
    names = ", ".join(known.name for known in kernels)
    raise BackendUnavailableError(f"Backend {found.name!r} has no kernel {kernel!r}; it has: {names}.")


def _choose(discovery: Discovery) -> tuple[FoundBackend, str]:
    broken = [f"{failure.name}: {failure.reason.rstrip('.')}" for failure in discovery.failures]
    passed_over: list[str] = []
    for found in sorted(discovery.backends, key=lambda found: -found.backend.priority):
        if found.backend.priority <= 0:  # oracles and test devices serve nobody who did not ask for them
            continue
        probe = found.probe()
        if probe.available:
            others = "; ".join(passed_over + broken)
            return found, "the best one available" + (f" ({others})" if others else "")
        passed_over.append(f"{found.name}: {probe.reason.rstrip('.')}")
    detail = "; ".join(passed_over + broken) or "no plugin is installed"
    raise BackendUnavailableError(f"No backend is available here ({detail}). Install one, or name one with backend=.")


def _ask(plugin: ModuleType | Any, name: str) -> list[Backend]:
    """The backends of one plugin. Each gets a manager of its own: one's failure cannot hide another's answer."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendSpec)
    manager.register(plugin, name=name)
    answers = manager.hook.octavo_backends()
    if not answers:
        raise BackendError(f"Plugin {name!r} has no function octavo_backends marked with octavo.backend.hookimpl.")
    if not all(isinstance(answer, Iterable) for answer in answers):
        raise BackendError(f"octavo_backends of plugin {name!r} did not return a list of Backends.")
    backends = [backend for answer in answers for backend in answer]
    for backend in backends:
        if not isinstance(backend, Backend):
            raise BackendError(
                f"octavo_backends of plugin {name!r} returned a {type(backend).__name__} where a Backend is expected."
            )
        if not isinstance(backend.api_version, int):
            raise BackendError(
                f"Backend {backend.name!r} of plugin {name!r} has the api_version "
                f"{backend.api_version!r}; it is an integer."
            )
    if all(accepts(backend.api_version) for backend in backends):
        manager.check_pending()  # a later contract may have hooks that are unknown here: its version says more
    return backends


def _refusal(backend: Backend, accepted: list[FoundBackend]) -> str:
    if not accepts(backend.api_version):
        known = (
            f"version {API_VERSION}"
            if OLDEST_API_VERSION == API_VERSION
            else f"versions {OLDEST_API_VERSION} to {API_VERSION}"
        )
        advice = "upgrade octavo-core" if backend.api_version > API_VERSION else "upgrade the plugin"
        return (
            f"it was written for version {backend.api_version} of the backend contract, and this octavo-core speaks "
            f"{known}: {advice}."
        )
    if backend.name == AUTO:
        return f"a backend cannot be named {AUTO!r}, which asks for the best one."
    for other in accepted:
        if other.name == backend.name:
            return (
                f"package {other.package} offers a backend of the same name and was found first: uninstall one of them."
            )
    return ""


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    # Half-removed distributions are met in the field: entry points without metadata.
    metadata = None if entry.dist is None else entry.dist.read_text("METADATA") or entry.dist.read_text("PKG-INFO")
    if entry.dist is None or not metadata:
        return "unknown", "unknown"
    return entry.dist.name, entry.dist.version
