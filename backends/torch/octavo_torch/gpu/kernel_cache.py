"""Where compiled kernels are kept from one start to the next.

Triton keeps what it compiled in one directory for all programs and versions, which only grows. Here each fingerprint of
what the kernels depend on has a directory of its own, so that those of old versions can be told and removed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterable, MutableMapping
from importlib.resources.abc import Traversable
from pathlib import Path

VARIABLE = "TRITON_CACHE_DIR"

KEPT = 4
"""Fingerprints whose kernels are kept: a version and the one before it, on two architectures."""

_PACKAGES = ("torch", "triton", "octavo-torch")


def fingerprint(arch: str, sources: Iterable[Traversable]) -> str:
    """Of kernels for an architecture.

    sources: files, and directories of Python files, whose contents the kernels depend on.
    """
    digest = hashlib.sha256(arch.encode())
    for package in _PACKAGES:
        digest.update(f"\n{package} {_version(package)}".encode())
    for source in sources:
        for path, content in sorted(_files(source)):
            digest.update(f"\n{path} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:32]


def use_kernel_cache(mark: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Have Triton keep its kernels under this fingerprint. Returns a sentence for the operator.

    A directory that the user chose with TRITON_CACHE_DIR stays. Of other fingerprints, those used last are kept.
    """
    root, chosen = _root(environment), environment.get(VARIABLE)
    if chosen and Path(chosen).parent != root:  # one below it is that of a device opened before
        return f"Compiled kernels are kept in {chosen} ({VARIABLE})."
    try:
        directory = root / mark
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        if not os.access(directory, os.W_OK):
            raise PermissionError(f"{directory} cannot be written")
    except OSError as error:
        # A fresh directory: whoever can write where kernels are read from can run code on the card.
        environment[VARIABLE] = tempfile.mkdtemp(prefix="octavo-triton-")
        return f"Compiled kernels are kept for this run only: {error}."
    environment[VARIABLE] = str(directory)
    _forget_old(root, directory)
    return f"Compiled kernels are kept in {directory}."


def _root(environment: MutableMapping[str, str]) -> Path:
    base = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", os.path.expanduser("~")), ".cache")
    return Path(base) / "octavo" / "triton"


def _forget_old(root: Path, current: Path) -> None:
    others = [path for path in root.iterdir() if path.is_dir() and path != current]
    by_age = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too


def _files(source: Traversable, inside: str = "") -> Iterable[tuple[str, bytes]]:
    path = f"{inside}/{source.name}"
    if source.is_file():
        if not inside or source.name.endswith(".py"):
            yield path, source.read_bytes()
        return
    for child in source.iterdir():
        if child.name != "__pycache__":
            yield from _files(child, path)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # a vendor's own build goes by another name
