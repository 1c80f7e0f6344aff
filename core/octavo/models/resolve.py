"""From a model's name to its files: the demo, a `.gguf` file, a directory, or an id on the model hub."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from octavo.errors import ModelError

DEMO = "demo"

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, 0 to 1."""

# Checked before an id becomes part of a path (CVE-2024-37032, CVE-2024-45436): no empty part, no part of dots
# only.
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
_HUB_DUPLICATES = ["consolidated*.safetensors"]  # Mistral's own layout of the same weights


class FileKind(Enum):
    """How a model's files are laid out."""

    DIRECTORY = "directory"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine. name: as the user gave it; path: a directory or a .gguf file, as `kind` says."""

    name: str
    path: Path
    kind: FileKind


def resolve_model(model: str, progress: Progress | None = None) -> ModelFiles:
    """Find a model's files, fetching them where the name says so.

    model: "demo"; a path to a .gguf file; a directory with config.json and safetensors, or with one .gguf
    file; or a hub id such as "organisation/name".
    Raises ModelError when there is no such model or it cannot be fetched.
    """
    if model == DEMO:
        from octavo.models.demo import fetch_demo

        return ModelFiles(model, fetch_demo(progress), FileKind.GGUF)
    path = Path(model).expanduser()
    if path.is_dir():
        return _in_directory(model, path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{model} is neither a directory nor a .gguf file.")
        return ModelFiles(model, path, FileKind.GGUF)
    if _looks_like_path(model):
        raise ModelError(f"There is no file or directory {model}.")
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise ModelError(
            f"{model!r} is no model: give a directory, a .gguf file, a hub id such as organisation/name, or {DEMO!r}."
        )
    return ModelFiles(model, _from_hub(model, progress), FileKind.DIRECTORY)


def _in_directory(model: str, path: Path) -> ModelFiles:
    ggufs = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() and (any(path.glob("*.safetensors*")) or len(ggufs) != 1):
        return ModelFiles(model, path, FileKind.DIRECTORY)
    if len(ggufs) == 1:
        return ModelFiles(model, ggufs[0], FileKind.GGUF)
    if ggufs:
        raise ModelError(f"{model} holds {len(ggufs)} .gguf files; name one of them, such as {ggufs[0]}.")
    raise ModelError(f"{model} holds no model: neither a config.json with safetensors nor a .gguf file.")


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith((".gguf", "/")) or "\\" in model


def _from_hub(model: str, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if progress is not None:
        progress(f"fetching {model} from the model hub", 0.0)
    try:
        directory = Path(snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_DUPLICATES))
    except GatedRepoError:
        raise ModelError(f"{model} is gated: ask for access on its page, then log in with `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"There is no directory {model}, and the model hub has no public model of that name."
        ) from None
    except Exception as error:  # the library lets its HTTP client's own errors through
        if _is_local(error):
            raise ModelError(f"{model} cannot be fetched: {_reason(error)}.") from None
        raise ModelError(
            f"There is no directory {model}, and the model hub cannot be reached to fetch it: {_reason(error)}; "
            f"name a local directory or .gguf file, or use {DEMO!r}."
        ) from None
    if progress is not None:
        progress(f"fetched {model}", 1.0)
    return directory


def _is_local(error: Exception) -> bool:
    """Whether this machine failed (a full disk, a folder that cannot be written), not the way to the hub."""
    remote = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    return isinstance(error, OSError) and error.errno is not None and not remote


def _reason(error: Exception) -> str:
    """The first line of what an error says, without the full stop."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = said.strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")
