"""What a step's program is called: in the log, in profiles, and on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any

from octavo.backend import StepInputs


def step_name(inputs: StepInputs, variant: Any) -> str:
    """All that a program is compiled for but the model. variant: `Bucket.variant`."""
    meta = inputs.attention
    sequences, blocks = meta.block_tables.shape
    parts = (
        f"{len(inputs.token_ids)} tokens",
        f"{len(inputs.logit_rows)} rows",
        "decodes" if meta.decode_only else "prefills too",
        *_switches(variant),
        f"tables of {sequences} x {blocks}",
    )
    return ", ".join(parts)


def _switches(variant: Any) -> Iterator[str]:
    """Fields that are not what they are by default; a variant without fields as it is."""
    if variant is None:
        return
    if isinstance(variant, type) or not is_dataclass(variant):
        yield str(variant)
        return
    for field in fields(variant):
        value = getattr(variant, field.name)
        if field.default is MISSING or value != field.default:
            yield field.name if value is True else f"{field.name} {value.value if isinstance(value, Enum) else value}"
