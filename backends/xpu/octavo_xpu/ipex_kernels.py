"""IPEX's attention as a device's choice: what it does not take, and all else, runs on this project's Triton kernels."""

from __future__ import annotations

from dataclasses import replace

from octavo.backend import Array, AttentionMetadata, LayerKV, StepInputs
from octavo_torch.gpu.triton_kernels import TritonKernels
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.triton_ops import TritonOps
from octavo_xpu.ipex import IpexAttention, IpexPlan, Platform, with_plan


class IpexOps(TritonOps):
    """`TritonOps` with IPEX's attention. Their cache is in the order that IPEX's XPU kernel reads."""

    def __init__(self, runtime: KernelRuntime, attention: IpexAttention) -> None:
        super().__init__(runtime)
        self._attention = attention

    def paged_attention(
        self,
        q: Array,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        plan = meta.plan
        if isinstance(plan, IpexPlan) and self._attention.takes(q, kv.keys, plan, window, sinks):
            return self._attention.attend(q, kv.keys, kv.values, meta, scale, softcap)
        return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)


class IpexKernels(TritonKernels):
    """The kernel `ipex`. Raises BackendUnavailableError where IPEX for XPU is not installed or does not load."""

    name = "ipex"

    def __init__(self, runtime: KernelRuntime) -> None:
        super().__init__(runtime)
        self.ops = IpexOps(runtime, IpexAttention(Platform.XPU))
        # IPEX takes the longest context as a number of the host, which a recorded step would keep.
        self.capabilities = replace(self.capabilities, graph_capture=False)

    def plan(self, inputs: StepInputs) -> StepInputs:
        return with_plan(super().plan(inputs))
