"""The IPEX flavour without IPEX: what is found, what goes to its kernels, in which order of memory, and what does not.

The kernels themselves are run by `backends/xpu/ipex/check.py`, in an environment of its own.
"""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend import AttentionMetadata, BackendUnavailableError, DType, KVLayout, MemoryInfo, StepInputs
from octavo_torch import TorchDevice, TorchOps
from octavo_xpu import ipex
from octavo_xpu.ipex import IpexAttention, Platform, find_ipex, ipex_kernel, with_plan

BLOCK_SIZE, HEADS, KV_HEADS, SIZE = 4, 4, 2, 64
CONTEXTS, QUERIES = (6, 9, 5), (1, 4, 5)
TABLES = [[3, 7, 0], [5, 1, 8], [2, 6, 0]]


class FakePagedAttention:
    """IPEX's call, in float64 and in the memory order of one platform."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.attended = 0

    def flash_attn_varlen_func(
        self,
        out: Any,
        q: Any,
        keys: Any,
        values: Any,
        query_starts: Any,
        context_starts: Any,
        most_queries: int,
        longest_context: int,
        scale: float,
        is_cusal: bool,
        block_tables: Any,
        alibi_slopes: Any,
        softcap: float,
    ) -> None:
        self.attended += 1
        assert keys.is_contiguous()
        assert q.is_contiguous()
        assert is_cusal
        assert alibi_slopes is None
        assert most_queries == query_starts.diff().max()
        assert longest_context == context_starts.diff().max()
        assert len(block_tables) == len(query_starts) - 1 == len(context_starts) - 1
        for row, table in enumerate(block_tables.tolist()):
            start, stop = query_starts[row : row + 2].tolist()
            context = int(context_starts[row + 1] - context_starts[row])
            where = [(table[at // BLOCK_SIZE], at % BLOCK_SIZE) for at in range(context)]
            k, v = (torch.stack([self._slot(side, *place) for place in where]).double() for side in (keys, values))
            for token in range(start, stop):
                seen = context - (stop - token) + 1
                for head in range(HEADS):
                    scores = k[:seen, head * KV_HEADS // HEADS] @ q[token, head].double() * scale
                    if softcap > 0:
                        scores = softcap * torch.tanh(scores / softcap)
                    out[token, head] = torch.softmax(scores, 0) @ v[:seen, head * KV_HEADS // HEADS]

    def _slot(self, side: torch.Tensor, block: int, offset: int) -> torch.Tensor:
        return side[block, :, offset] if self.platform is Platform.CPU else side[block, offset]


class FakeIpexDevice(TorchDevice):
    """The flavour on the host, with the fake kernel and torch's operations beside it."""

    torch_device = torch.device("cpu")

    def __init__(self, platform: Platform, fake: FakePagedAttention) -> None:
        self.attention = IpexAttention(platform)
        self.fake = fake

    def stage(self, inputs: StepInputs) -> StepInputs:
        return super().stage(with_plan(inputs))

    def attend(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        keys, values = kv
        if self.attention.takes(q, keys, meta.plan, window, sinks):
            return self.attention.attend(q, keys, values, meta, scale, softcap)
        return TorchOps().paged_attention(q, kv, meta, scale, window, softcap, sinks)

    def check_kv(self, layout: KVLayout) -> None:
        """Small blocks will do."""

    def memory(self) -> MemoryInfo:
        return MemoryInfo(1 << 30, 1 << 30)


def installed(monkeypatch: pytest.MonkeyPatch, versions: Mapping[str, str]) -> None:
    """Have the environment say that these distributions are installed, and no others."""

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.fixture(params=Platform)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeIpexDevice:
    platform: Platform = request.param
    suffix = "+xpu" if platform is Platform.XPU else ""
    installed(monkeypatch, {ipex.PACKAGE: f"2.8.10{suffix}", "torch": "2.8.0"})
    fake = FakePagedAttention(platform)
    monkeypatch.setattr(ipex, "_load", lambda: fake)
    return FakeIpexDevice(platform, fake)


def step(rows: int = 0) -> StepInputs:
    """One decode and two prefill chunks; then `rows` padding tokens and as many padding sequences."""
    starts = np.cumsum([0, *QUERIES, *[0] * rows]).astype(np.int32)
    positions = np.concatenate([np.arange(c - q, c) for c, q in zip(CONTEXTS, QUERIES, strict=True)])
    sequences = np.repeat(np.arange(len(QUERIES)), QUERIES)
    slots = [
        TABLES[s][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for s, p in zip(sequences, positions, strict=True)
    ]
    pad, tokens = np.zeros(rows, np.int32), len(positions)
    meta = AttentionMetadata(
        positions=np.concatenate([positions, pad]).astype(np.int32),
        slots=np.concatenate([slots, pad]).astype(np.int32),
        sequences=np.concatenate([sequences, pad]).astype(np.int32),
        query_starts=starts,
        context_lengths=np.concatenate([CONTEXTS, pad]).astype(np.int32),
        block_tables=np.concatenate([TABLES, np.zeros((rows, 3))]).astype(np.int32),
    )
    return StepInputs(np.zeros(tokens + rows, np.int32), np.zeros(1, np.int32), meta)


def filled(device: FakeIpexDevice, dtype: DType) -> torch.Tensor:
    """A cache with every sequence's keys and values in the platform's order; NaN everywhere else."""
    (layer,) = device.allocate_kv(KVLayout(1, KV_HEADS, SIZE, BLOCK_SIZE, dtype), 9)
    if device.attention.platform is Platform.CPU:
        layer = layer.view(2, 9, KV_HEADS, BLOCK_SIZE, SIZE).transpose(2, 3)
    layer.fill_(math.nan)
    generator = torch.Generator().manual_seed(1)
    for table, context in zip(TABLES, CONTEXTS, strict=True):
        for at in range(context):
            layer[:, table[at // BLOCK_SIZE], at % BLOCK_SIZE] = torch.randn(2, KV_HEADS, SIZE, generator=generator)
    return layer


def queries(inputs: StepInputs, dtype: torch.dtype) -> torch.Tensor:
    shape = (len(inputs.token_ids), HEADS, SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"window": 9}])
def test_a_mixed_batch_is_one_launch_of_the_kernel(
    device: FakeIpexDevice, padding: int, options: dict[str, Any]
) -> None:
    inputs = step(padding)
    meta, kv, q = device.stage(inputs).attention, filled(device, DType.BFLOAT16), queries(inputs, torch.bfloat16)
    came = device.attend(q, kv, meta, 0.3, **options)
    assert device.fake.attended == 1
    expected = TorchOps().paged_attention(q, kv, meta, 0.3, **options)
    tokens = sum(QUERIES)
    torch.testing.assert_close(came[:tokens], expected[:tokens], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"window": 8}, torch.bfloat16),  # hides a token of the longest context
        ({"window": 1}, torch.bfloat16),
        ({"sinks": torch.ones(HEADS)}, torch.bfloat16),
        ({}, torch.float16),  # not the cache's dtype
    ],
)
def test_what_the_kernel_does_not_take_never_reaches_it(
    device: FakeIpexDevice, options: dict[str, Any], dtype: torch.dtype
) -> None:
    inputs = step()
    meta, kv, q = device.stage(inputs).attention, filled(device, DType.BFLOAT16), queries(inputs, dtype)
    came = device.attend(q, kv, meta, 0.3, **options)
    assert device.fake.attended == 0
    assert torch.equal(came, TorchOps().paged_attention(q, kv, meta, 0.3, **options))
    assert not came.isnan().any()


def test_float32_reaches_the_cpu_kernel_only(device: FakeIpexDevice) -> None:
    inputs = step()
    meta, kv, q = device.stage(inputs).attention, filled(device, DType.FLOAT32), queries(inputs, torch.float32)
    came = device.attend(q, kv, meta, 0.3)
    assert device.fake.attended == (1 if device.attention.platform is Platform.CPU else 0)
    torch.testing.assert_close(came, TorchOps().paged_attention(q, kv, meta, 0.3))


@pytest.mark.parametrize("size", [40, 320])
def test_a_head_size_that_xpu_pads_or_lacks_never_reaches_its_kernel(device: FakeIpexDevice, size: int) -> None:
    meta = device.stage(step()).attention
    q, keys = torch.zeros(10, HEADS, size).bfloat16(), torch.zeros(9, BLOCK_SIZE, KV_HEADS, size).bfloat16()
    assert device.attention.takes(q, keys, meta.plan) is (device.attention.platform is Platform.CPU)


def test_inputs_that_are_staged_stay(device: FakeIpexDevice) -> None:
    staged = device.stage(step(1))
    again = device.stage(staged)
    assert again.attention.plan.context_starts is staged.attention.plan.context_starts
    assert staged.attention.plan.sequences == 3


def test_a_step_of_padding_alone_has_an_empty_plan() -> None:
    meta = step(2).attention
    none = AttentionMetadata(
        *(getattr(meta, name)[-2:] * 0 for name in ("positions", "slots", "sequences")),
        np.zeros(3, np.int32),
        np.zeros(2, np.int32),
        meta.block_tables[-2:],
    )
    plan = with_plan(StepInputs(np.zeros(2, np.int32), np.zeros(1, np.int32), none)).attention.plan
    assert (plan.sequences, plan.most_queries, plan.longest_context) == (0, 0, 0)


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"torch": "2.13.0"}, "is not installed"),
        (
            {"torch": "2.13.0+cpu", ipex.PACKAGE: "2.8.0"},
            "loads with torch 2.8 only, and torch 2.13.0+cpu is installed",
        ),
    ],
)
def test_an_ipex_that_would_not_load_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], said: str
) -> None:
    installed(monkeypatch, versions)
    with pytest.raises(BackendUnavailableError, match=said.replace("+", r"\+")):
        find_ipex()
    with pytest.raises(BackendUnavailableError):
        IpexAttention(Platform.XPU)


def test_the_build_for_cpus_is_no_kernel_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"torch": "2.8.0", ipex.PACKAGE: "2.8.0"})
    assert ipex_kernel(Platform.CPU).available
    kernel = ipex_kernel()
    assert not kernel.available
    assert "the build for cpu; the one for xpu is needed" in kernel.reason


def test_importing_the_package_does_not_look_for_ipex() -> None:
    code = "import sys, octavo_xpu.ipex; sys.exit('intel_extension_for_pytorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
