"""The kernel `ipex` of backend `xpu`: IPEX's attention where it takes a step, Triton's for the rest."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend import AttentionMetadata, StepInputs
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.triton_ops import TritonOps
from octavo_xpu import ipex
from octavo_xpu.ipex_kernels import IpexKernels


class Calls:
    """Stands for IPEX's calls, and remembers the caches it was given."""

    def __init__(self) -> None:
        self.caches: list[tuple[int, int]] = []

    def flash_attn_varlen_func(self, out: Any, q: Any, keys: Any, values: Any, *rest: Any, **named: Any) -> None:
        self.caches.append((keys.data_ptr(), values.data_ptr()))
        out.fill_(1.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    versions = {ipex.PACKAGE: "2.8.10+xpu", "torch": "2.8.0+xpu"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(ipex, "_load", lambda: made)
    monkeypatch.setattr(TritonOps, "paged_attention", lambda self, q, *rest: torch.full_like(q, 2.0))
    return made


@pytest.fixture
def kernels(calls: Calls) -> IpexKernels:
    return IpexKernels(None)  # type: ignore[arg-type]  # no Triton kernel is launched


def decode() -> StepInputs:
    one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
    meta = AttentionMetadata(zero + 4, zero + 20, zero, np.array([0, 1], np.int32), zero + 5, one[:, None])
    return StepInputs(zero, zero, meta, None, None)


def cache(dtype: torch.dtype) -> PagedKV:
    return PagedKV(*torch.zeros(2, 3, 16, 2, 64, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "q_dtype", "kv_dtype", "by_ipex"),
    [
        ({}, torch.bfloat16, torch.bfloat16, True),
        ({"window": 5, "softcap": 30.0}, torch.float16, torch.float16, True),
        ({"window": 4}, torch.bfloat16, torch.bfloat16, False),
        ({"sinks": torch.ones(4)}, torch.bfloat16, torch.bfloat16, False),
        ({}, torch.float32, torch.float32, False),
        ({}, torch.bfloat16, torch.float8_e4m3fn, False),
    ],
)
def test_triton_takes_what_ipex_does_not(
    calls: Calls,
    kernels: IpexKernels,
    options: dict[str, Any],
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    by_ipex: bool,
) -> None:
    q, kv = torch.zeros(1, 4, 64, dtype=q_dtype), cache(kv_dtype)
    came = kernels.ops.paged_attention(q, kv, kernels.plan(decode()).attention, 0.1, **options)
    assert (came == (1.0 if by_ipex else 2.0)).all()
    assert calls.caches == ([(kv.keys.data_ptr(), kv.values.data_ptr())] if by_ipex else [])


def test_it_claims_what_triton_claims_but_recorded_steps(kernels: IpexKernels) -> None:
    assert not kernels.capabilities.graph_capture
    assert kernels.name == "ipex"
    assert kernels.capabilities.kv_dtypes


def test_the_plan_is_made_on_the_host(kernels: IpexKernels) -> None:
    plan = kernels.plan(decode()).attention.plan
    assert isinstance(plan.context_starts, np.ndarray)
    assert (plan.sequences, plan.most_queries, plan.longest_context) == (1, 1, 5)
