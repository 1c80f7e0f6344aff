"""The name of a backend, and the names that follow from it."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from octavo.backend.discovery import AUTO, discover

LONGEST_NAME = 32
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


class NewBackendError(ValueError):
    """A backend that cannot be written; the message says why, and what would do."""


@dataclass(frozen=True, slots=True)
class BackendName:
    """What a backend is called, `my-chip`, in the places where it has a name."""

    name: str

    @property
    def package(self) -> str:
        """The distribution: octavo-my-chip."""
        return "octavo-" + self.name.replace("_", "-")

    @property
    def module(self) -> str:
        """What is imported: octavo_my_chip."""
        return "octavo_" + self.name.replace("-", "_")

    @property
    def title(self) -> str:
        """How its classes start: MyChip."""
        return "".join(part.capitalize() for part in re.split("[-_]", self.name))


def check_name(name: str) -> BackendName:
    """A name that a new backend can have. Raises NewBackendError for any other, with the reason."""
    if not _NAME.fullmatch(name):
        raise NewBackendError(
            f"{name!r} cannot be the name of a backend: it is lower-case letters and digits, a letter first, "
            "with single hyphens or underscores between them, such as my-chip."
        )
    if len(name) > LONGEST_NAME:
        raise NewBackendError(f"{name!r} has {len(name)} letters; the name of a backend has at most {LONGEST_NAME}.")
    if name == AUTO:
        raise NewBackendError(f"A backend cannot be named {AUTO!r}: that asks for the best one there is.")
    if keyword.iskeyword(name):
        raise NewBackendError(f"A backend cannot be named {name!r}, which is a keyword of Python.")
    found = discover()
    installed = {backend.name for backend in found.backends} | {failure.name for failure in found.failures}
    if name in installed:
        names = ", ".join(sorted(installed))
        raise NewBackendError(
            f"There is a backend {name!r} already; choose a name other than those installed: {names}."
        )
    checked = BackendName(name)
    if _is_installed(checked.package):
        raise NewBackendError(
            f"A backend {name!r} would be the package {checked.package}, which is installed already; choose another."
        )
    return checked


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
