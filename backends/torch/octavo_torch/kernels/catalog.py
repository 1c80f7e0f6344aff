"""All kernels of this package."""

from __future__ import annotations

from octavo_torch.kernels import (
    attention,
    gated_activation,
    lora,
    mixture_of_experts,
    probability_units,
    quantized_linear,
    rms_norm,
    rotary_write_kv,
    top_k,
)
from octavo_torch.kernels.kernel import Kernel
from octavo_torch.kernels.tuning import Tunable

CATALOG: tuple[Kernel, ...] = (
    rms_norm.KERNEL,
    quantized_linear.KERNEL,
    lora.KERNEL,
    rotary_write_kv.KERNEL,
    attention.KERNEL,
    gated_activation.KERNEL,
    mixture_of_experts.KERNEL,
    probability_units.KERNEL,
    top_k.KERNEL,
)
"""In the order in which a step calls them."""


def tunables() -> tuple[Tunable, ...]:
    """What a tuning table may speak of."""
    return tuple(tunable for kernel in CATALOG for tunable in kernel.tunables)
