"""The settings that are this backend's own: `backend_options` of the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.backend import UnsupportedError
from octavo_xla.platforms import Platform, default_platform

_LARGEST_HOST = 64


@dataclass(frozen=True, slots=True)
class XlaOptions:
    """platform: cpu, gpu or tpu; the best one that is there unless it is named.

    host_devices: how many devices the host pretends to be (platform cpu), to try tensor parallelism without any.
    cache: folder in which compiled programs are kept from one start to the next, None for nowhere ("off").
    """

    platform: Platform
    host_devices: int = 1
    cache: Path | None = None

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> XlaOptions:
        """Raises UnsupportedError for an option or a value that there is not."""
        if unknown := sorted(set(options) - set(_NAMES)):
            raise UnsupportedError(f"Backend 'xla' has no option {unknown[0]!r}; it has: {', '.join(_NAMES)}.")
        platform = _platform(options.get("platform", "auto"))
        return cls(platform, _host_devices(options.get("host_devices", "1"), platform), _cache(options.get("cache")))


_NAMES = ("platform", "host_devices", "cache")


def _platform(text: str) -> Platform:
    if text == "auto":
        return default_platform()
    if text not in set(Platform):
        names = ", ".join(platform.value for platform in Platform)
        raise UnsupportedError(f"Option platform of backend 'xla' is auto, {names}, and is {text!r}.")
    return Platform(text)


def _host_devices(text: str, platform: Platform) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= _LARGEST_HOST:
        raise UnsupportedError(
            f"Option host_devices of backend 'xla' is a number of devices, from 1 to {_LARGEST_HOST}, and is {text!r}."
        )
    if number > 1 and platform is not Platform.CPU:
        raise UnsupportedError(
            f"Option host_devices of backend 'xla' is for platform cpu; platform is {platform.value}."
        )
    return number


def _cache(text: str | None) -> Path | None:
    asked = text or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "octavo", "xla")
    if asked.lower() == "off":
        return None
    if "://" in asked:
        raise UnsupportedError(
            f"Option cache of backend 'xla' is a folder of this machine, or off for none, and is {asked!r}."
        )
    try:
        return Path(asked).expanduser()
    except RuntimeError as error:
        raise UnsupportedError(
            f"Option cache of backend 'xla' is a folder, or off for none: {asked!r} has a home directory that there is "
            "not."
        ) from error
