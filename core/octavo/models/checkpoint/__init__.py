"""Checkpoints: weights and configuration as files hold them, read without running anything they contain.

Two formats, one shape: `Checkpoint` speaks the words of a Hugging Face `config.json` and of its tensor names,
whatever the file's own words are.
"""

from octavo.models.checkpoint.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
