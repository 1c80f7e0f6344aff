"""How a package registers its backends: one pluggy hook that returns plain objects.

pluggy is used for discovery and nothing else; after `open_device` everything is ordinary method calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pluggy

from octavo.backend.device import Device, DeviceConfig

PROJECT = "octavo"
ENTRY_POINT_GROUP = "octavo.backends"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of paged attention that a backend can run, and whether it can here."""

    name: str
    available: bool
    reason: str  # why it is or is not available, and what installs it
    selected: bool = False  # what kernel = "auto" takes


@dataclass(frozen=True, slots=True)
class Probe:
    """What a backend finds on this machine, without opening a device.

    available: `open` would succeed. reason: a sentence, whichever way it goes. remedy: the command that installs what
    is missing, or "".
    """

    available: bool
    reason: str
    remedy: str = ""
    devices: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend of a plugin.

    name: what `backend = "..."` says. api_version: the contract it was written for: a literal, not API_VERSION.
    priority: "auto" takes the available backend with the highest one; accelerators 100, cpu 10. With 0 or less, as the
        reference, a backend runs only when it is asked for by name.
    probe, open: plain callables that import their framework only when called.
    """

    name: str
    api_version: int
    summary: str
    probe: Callable[[], Probe]
    open: Callable[[DeviceConfig], Device]
    priority: int = 50


class BackendSpec:
    """The hooks of an Octavo plugin."""

    @hookspec
    def octavo_backends(self) -> Sequence[Backend]:  # type: ignore[empty-body]  # a specification has no body
        """The backends this plugin offers. Must not import a framework or touch a device."""
