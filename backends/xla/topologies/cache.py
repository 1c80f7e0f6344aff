"""Figures of earlier runs, so that only what changed is compiled again."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from . import figures as figures_module
from . import instructions as instructions_module
from .figures import Figures


@dataclass(frozen=True, slots=True)
class FigureCache:
    """A file for each fingerprint; others under another compiler, and where figures would be read differently."""

    folder: Path

    def get(self, fingerprint: str) -> Figures | None:
        try:
            found = json.loads(self._path(fingerprint).read_text(encoding="utf-8"))
            kernels = tuple((name, count) for name, count in found.pop("kernels"))
            return Figures(**found | {"kernels": kernels, "copies": tuple(found["copies"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, fingerprint: str, figures: Figures) -> None:
        path = self._path(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(figures)), encoding="utf-8")

    def _path(self, fingerprint: str) -> Path:
        readers = "".join(inspect.getsource(module) for module in (figures_module, instructions_module))
        reader = hashlib.sha256(f"{compiler()}\n{readers}".encode()).hexdigest()[:12]
        return self.folder / reader / f"{fingerprint}.json"


def compiler() -> str:
    """The versions that figures depend on."""
    return ", ".join(f"{package} {version(package)}" for package in ("jax", "libtpu"))
