"""Pallas kernels for TPUs: what XLA alone does not do well over a paged cache."""
