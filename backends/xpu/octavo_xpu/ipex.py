"""Paged attention of intel-extension-for-pytorch (IPEX), a kernel of this backend that is asked for by name.

One call serves IPEX's CPU and XPU platforms and all sequences of a step, `flash_attn_varlen_func`. What it does not
take is for the operations beside it: `IpexAttention.takes` says which.

Importing this module does not import IPEX: it changes torch for the whole process, and where torch is not the release
it was built for it fails in ways of its own. `find_ipex` looks before anything is loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import torch

from octavo.backend import (
    Array,
    AttentionMetadata,
    BackendUnavailableError,
    Kernel,
    StepInputs,
)

PACKAGE = "intel-extension-for-pytorch"


class Platform(str, Enum):
    """What a build of IPEX runs on."""

    CPU = "cpu"
    XPU = "xpu"


# ------------------------------------------------------------------------------------------------------ what is there


@dataclass(frozen=True, slots=True)
class Ipex:
    """An installed IPEX that fits the installed torch."""

    version: str
    platform: Platform


def find_ipex() -> Ipex:
    """What is installed, without importing it. Raises BackendUnavailableError where there is none that would load."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailableError(
            f"{PACKAGE} is not installed. It loads with the release of torch it was built for and no other: Intel's "
            "own package index has the two of them for its GPUs, the public one has IPEX for CPUs."
        ) from None
    installed = importlib.metadata.version("torch")
    if _release(installed) != _release(version):
        raise BackendUnavailableError(
            f"{PACKAGE} {version} loads with torch {_release(version)} only, and torch {installed} is installed."
        )
    return Ipex(version, Platform.XPU if version.endswith("+xpu") else Platform.CPU)


def ipex_kernel(platform: Platform = Platform.XPU) -> Kernel:
    """The kernel as a probe lists it: whether an IPEX for `platform` is installed, and if not, why."""
    try:
        found = find_ipex()
    except BackendUnavailableError as error:
        return Kernel("ipex", False, str(error))
    if found.platform is not platform:
        wrong = f"{PACKAGE} {found.version} is the build for {found.platform.value}"
        return Kernel("ipex", False, f"{wrong}; the one for {platform.value} is needed.")
    return Kernel("ipex", True, f"{PACKAGE} {found.version}")


def _release(version: str) -> str:
    """The part of a version that a build of IPEX and torch have in common: "2.8"."""
    return ".".join(version.split(".")[:2])


# ------------------------------------------------------------------------------------------------- what a step attends


@dataclass(frozen=True, slots=True)
class IpexPlan:
    """What the attention of every layer of a step needs to know of its sequences, padding left out.

    sequences: how many there are. query_starts, context_starts int32 [sequences + 1]: running sums of their queries and
    of their contexts. most_queries, longest_context: the largest of each.
    """

    sequences: int
    query_starts: Array
    context_starts: Array
    most_queries: int
    longest_context: int


def with_plan(inputs: StepInputs) -> StepInputs:
    """A step's inputs, still NumPy arrays on the host, with their `IpexPlan` attached.

    Inputs that have one are on the device already and stay as they are.
    """
    meta = inputs.attention
    if isinstance(meta.plan, IpexPlan):
        return inputs
    contexts = meta.context_lengths[meta.context_lengths > 0]  # padding sequences come last and have none
    query_starts = np.array(meta.query_starts[: len(contexts) + 1])
    plan = IpexPlan(
        sequences=len(contexts),
        query_starts=query_starts,
        context_starts=np.concatenate([[0], np.cumsum(contexts)]).astype(np.int32),
        most_queries=int(np.diff(query_starts).max(initial=0)),
        longest_context=int(contexts.max(initial=0)),
    )
    return replace(inputs, attention=replace(meta, plan=plan))


class IpexAttention:
    """The kernel of one platform. Raises BackendUnavailableError where IPEX for it is not installed or does not load.

    keys, values [blocks, block_size, kv_heads, head_size]: on XPU contiguous; on the CPU platform views of contiguous
    memory in the order that its kernel wants, [blocks, kv_heads, block_size, head_size].
    """

    def __init__(self, platform: Platform) -> None:
        found = ipex_kernel(platform)
        if not found.available:
            raise BackendUnavailableError(found.reason)
        self.platform = platform
        self.calls = _load()

    def takes(
        self, q: torch.Tensor, keys: torch.Tensor, plan: IpexPlan, window: int | None = None, sinks: Array | None = None
    ) -> bool:
        """Whether the kernel gives the contract's result for these queries.

        Sinks it does not know. A window that hides tokens: it multiplies the hidden values by zero, which makes NaN of
        what slots before the window may hold, and a window of one token it takes for none at all.
        """
        hides = window is not None and window < plan.longest_context
        return q.dtype == keys.dtype and sinks is None and not hides and plan.sequences > 0 and self._has(q)

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        meta: AttentionMetadata,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """`Ops.paged_attention` of what it `takes`, over inputs that `with_plan` planned; padding rows are zero."""
        plan = meta.plan
        assert isinstance(plan, IpexPlan)
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        self.calls.flash_attn_varlen_func(
            out,
            q.contiguous(),
            self.in_kernel_order(keys),
            self.in_kernel_order(values),
            plan.query_starts,
            plan.context_starts,
            plan.most_queries,
            plan.longest_context,
            scale,
            is_cusal=True,  # IPEX's own spelling
            block_tables=meta.block_tables[: plan.sequences],
            alibi_slopes=None,
            softcap=-1.0 if softcap is None else softcap,
        )
        return out

    def in_kernel_order(self, side: torch.Tensor) -> torch.Tensor:
        """Keys or values with the axes in the order of the platform's memory."""
        return side if self.platform is Platform.XPU else side.transpose(1, 2)

    def _has(self, q: torch.Tensor) -> bool:
        """Whether the platform has the kernel for this dtype and head size.

        XPU, by IPEX's source, 2.8.10+xpu: it reads float32 as bfloat16 without a word, has no head of more than 256,
        and for one that is no multiple of 64 copies the blocks in use in every layer.
        """
        if self.platform is Platform.CPU:
            return q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] in (64, 128, 192, 256)


def _load() -> Any:
    """IPEX's class of paged-attention calls."""
    try:
        return importlib.import_module("intel_extension_for_pytorch.llm.modules").PagedAttention
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(f"{PACKAGE} is installed and does not load: {error}") from error
