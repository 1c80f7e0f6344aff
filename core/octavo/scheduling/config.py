"""The limits that a scheduler keeps."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step and of the queue.

    max_num_seqs: sequences running at once. max_num_batched_tokens: tokens in one step; at least
    max_num_seqs, so that every running sequence can decode in every step. max_model_len: tokens of one
    sequence, prompt and output. max_waiting: sequences in the queue. Raises ConfigError for limits that no
    step could keep.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_waiting: int

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; with max_num_seqs "
                f"{self.max_num_seqs} it must be at least {self.max_num_seqs}, "
                "one token for each running sequence."
            )
