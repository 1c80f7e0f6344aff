"""What is stored in the KV cache, and the rotary embedding on its way there."""

from __future__ import annotations

from kernel_trial.fault import KernelFault

CACHE: tuple[KernelFault, ...] = (
    KernelFault(
        "rotary-sign",
        "Pairs are turned the other way around in one of their entries.",
        "rotary",
        "rotary_write_kv/move.py",
        "x * cos - y * sin",
        "x * cos + y * sin",
    ),
    KernelFault(
        "rotary-pairs",
        "Interleaved pairs are read as halves.",
        "rotary",
        "rotary_write_kv/move.py",
        "left = 2 * pair if INTERLEAVED else pair",
        "left = pair",
        near="interleaved",
    ),
    KernelFault(
        "block-size-assumed",
        "Blocks are taken to have 16 slots, whatever the cache has.",
        "write_kv",
        "rotary_write_kv/move.py",
        "(slot % BLOCK_SIZE) * slot_stride",
        "(slot % 16) * slot_stride",
        near="block",
    ),
    KernelFault(
        "entries-not-scaled",
        "Entries are rounded to eight bits without the factor that their scale stands for.",
        "rotary_write_kv",
        "rotary_write_kv/move.py",
        "encoded(x * factor, MANTISSA, LARGEST)",
        "encoded(x, MANTISSA, LARGEST)",
        near="float8",
    ),
    KernelFault(
        "scale-of-half-a-head",
        "A head's scale comes from the first entries of its pairs alone.",
        "rotary_write_kv",
        "rotary_write_kv/move.py",
        "largest = tl.maximum(_largest(turned_x), _largest(turned_y))",
        "largest = _largest(turned_x)",
        near="int8",
    ),
)
