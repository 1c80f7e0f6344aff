"""What a backend raises, so that core can turn it into one sentence for the person who chose it."""

from __future__ import annotations


class BackendError(ValueError):
    """Root of the errors that choosing or opening a backend can cause."""


class UnknownBackendError(BackendError):
    """No plugin of that name was found; the message lists those that were."""


class BackendUnavailableError(BackendError):
    """The backend or the kernel is there but cannot run here; the message says what is missing and what installs it."""


class ApiVersionError(BackendError):
    """The plugin was written for a version of the contract that this core does not speak."""


class UnsupportedError(BackendError):
    """The device does not do what was asked (a dtype, a head size, a format); the message says what it does."""


class DeviceLostError(RuntimeError):
    """The device, or what a failed step left of its KV cache, cannot be used any more: the engine ends and says why."""


class DeviceOutOfMemoryError(BackendError):
    """An allocation does not fit; the message gives what was asked and what is free, in bytes."""
