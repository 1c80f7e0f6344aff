"""The mistakes: one for each way in which a kernel of its kind is known to go wrong."""

from __future__ import annotations

from kernel_trial.fault import KernelFault
from kernel_trial.faults.attention import ATTENTION
from kernel_trial.faults.cache import CACHE
from kernel_trial.faults.products import PRODUCTS
from kernel_trial.faults.rows import ROWS

FAULTS: tuple[KernelFault, ...] = (*ATTENTION, *CACHE, *ROWS, *PRODUCTS)
