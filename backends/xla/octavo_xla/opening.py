"""Bringing up one of jax's platforms: once in a process, and only the one that was asked for."""

from __future__ import annotations

import os
from typing import Any

import jax

from octavo.backend import BackendUnavailableError, UnsupportedError
from octavo_xla.options import XlaOptions
from octavo_xla.platforms import Platform, missing

_THREADS_A_CORE = 16
"""More threads than these for each core only wait for each other, and thousands take minutes to start."""


def open_platform(options: XlaOptions, threads: int | None = None) -> list[Any]:
    """The devices of a platform. Raises BackendUnavailableError where it is not here, with what is missing,
    UnsupportedError for more threads than the host takes.

    threads: of the host, where that computes; the first that opens the backend in a process decides.
    """
    platform = options.platform
    lacking, remedy = missing(platform)
    if lacking:
        command = f" To install it: {remedy}" if remedy else ""
        raise BackendUnavailableError(
            f"Platform {platform.value!r} of backend 'xla' is not available here: {lacking}{command}"
        )
    if platform is Platform.CPU:
        _pretend(options.host_devices)
        if threads is not None:
            _check_threads(threads)
            os.environ["NPROC"] = str(threads)  # what XLA's host client sizes its pool by
    # A platform that is not named is not brought up: a TPU belongs to one process at a time.
    jax.config.update("jax_platforms", platform.value)
    try:
        devices: list[Any] = jax.devices(platform.value)
    except RuntimeError as error:
        raise BackendUnavailableError(
            f"Platform {platform.value!r} of backend 'xla' does not come up: {_sentence(error)}"
        ) from error
    if len(devices) < options.host_devices:
        raise BackendUnavailableError(
            f"The host was brought up as {len(devices)} devices in this process; host_devices = "
            f"{options.host_devices} has to be asked for by the first that opens backend 'xla'."
        )
    return devices


def _check_threads(threads: int) -> None:
    cores = os.cpu_count() or 1
    most = _THREADS_A_CORE * cores
    if not 1 <= threads <= most:
        raise UnsupportedError(
            f"threads = {threads} was asked for; this machine of {cores} cores takes 1 to {most} of them."
        )


def _pretend(devices: int) -> None:
    if devices > 1 and jax.config.jax_num_cpu_devices != devices:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # brought up already; `open_platform` counts what there is
            return


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return first[0]
