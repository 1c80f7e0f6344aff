"""What every checkpoint format is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.backend.weights import TensorSource
from octavo.models.resolve import FileKind, ModelFiles


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration and its tensors, not read yet.

    path: the directory or file, for messages.
    config: as a Hugging Face `config.json` has it.
    tensors: by their Hugging Face names; looking one up costs nothing, reading it does.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSource]


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Open what `resolve_model` found. Only headers are read.

    Raises ModelError for weights that are missing, cut short, damaged, or of a format or architecture not
    supported.
    """
    if files.kind is FileKind.GGUF:
        from octavo.models.checkpoint.gguf import open_gguf

        return open_gguf(files.path)
    from octavo.models.checkpoint.safetensors import open_safetensors

    return open_safetensors(files.path)
