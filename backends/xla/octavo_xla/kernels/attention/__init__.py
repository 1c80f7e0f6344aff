"""Ragged paged attention on a TPU."""

from octavo_xla.kernels.attention.attention import paged_attention

__all__ = ["paged_attention"]
