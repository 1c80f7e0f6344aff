"""AITER's decoding on a stand-in for the library: what it is asked, and what runs on Octavo's own kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from octavo.backend import AttentionMetadata, DType, KVLayout
from octavo_rocm.aiter import AiterKernels, missing_aiter
from octavo_torch.kernels.launch import KernelRuntime

LAYOUT = KVLayout(1, 2, 64, 16, DType.BFLOAT16)


class Library:
    """The module, as far as it is used: writes sevens."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def paged_attention_v1(self, out: torch.Tensor, *arguments: Any) -> torch.Tensor:
        self.calls.append(arguments)
        return out.fill_(7.0)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def kernels(runtime: KernelRuntime, library: Library) -> AiterKernels:
    return AiterKernels(runtime, library)


def decode(contexts: list[int]) -> AttentionMetadata:
    count = len(contexts)
    starts = torch.arange(count + 1, dtype=torch.int32)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    tables = torch.arange(1, 4 * count + 1, dtype=torch.int32).view(count, 4)
    return AttentionMetadata(lengths - 1, starts[:-1], starts[:-1], starts, lengths, tables, decode_only=True)


def cache(kernels: AiterKernels, layout: KVLayout = LAYOUT) -> Any:
    kv = kernels.allocate_kv(layout, 10, torch.device("cpu"))[0]
    kv.keys.normal_()
    kv.values.normal_()
    return kv


def test_decodes_run_there_with_the_tables_as_they_are(kernels: AiterKernels, library: Library) -> None:
    meta, kv = decode([17, 3]), cache(kernels)
    q = torch.randn(2, 3 * 8, 64, dtype=torch.bfloat16)[:, :8]  # a slice of a fused projection
    assert (kernels.ops.paged_attention(q, kv, meta, 0.125, softcap=30.0) == 7.0).all()
    (call,) = library.calls
    workspace, queries, keys, values, scale, tables, starts, lengths, longest = call[:9]
    assert workspace.numel() == 2 * 8 * 1 * (64 + 2) * 4
    assert queries.is_contiguous()
    assert keys is kv.keys
    assert values is kv.values
    assert tables is meta.block_tables
    assert lengths is meta.context_lengths
    assert (scale, starts, longest) == (0.125, None, 64)
    assert call[9:13] == (None, "auto", "NHD", 30.0)


@pytest.mark.parametrize("case", ["window", "sinks", "prefill", "float32 queries", "many heads", "head size"])
def test_what_it_does_not_take_runs_on_octavos_kernels(kernels: AiterKernels, library: Library, case: str) -> None:
    meta = decode([17, 3])
    layout = replace(LAYOUT, head_size=32) if case == "head size" else LAYOUT
    heads = 64 if case == "many heads" else 8
    q = torch.randn(2, heads, layout.head_size, dtype=torch.float32 if case == "float32 queries" else torch.bfloat16)
    options: dict[str, Any] = {"window": 4} if case == "window" else {}
    if case == "sinks":
        options = {"sinks": torch.zeros(heads)}
    if case == "prefill":
        meta = replace(meta, decode_only=False)
    out = kernels.ops.paged_attention(q, cache(kernels, layout), meta, 0.125, **options)
    assert out.shape == q.shape
    assert not (out == 7.0).all()
    assert library.calls == []


def test_another_package_of_the_same_name_is_not_taken_for_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aiter").mkdir()
    (tmp_path / "aiter" / "__init__.py").write_text("raise ImportError('it is not imported to be looked at')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "not installed" in missing_aiter()
    (tmp_path / "aiter" / "ops").mkdir()
    (tmp_path / "aiter" / "ops" / "attention.py").touch()
    assert missing_aiter() == ""


def test_it_claims_what_aiter_takes(kernels: AiterKernels) -> None:
    claimed = kernels.capabilities
    assert claimed.block_sizes == (16,)
    assert DType.FLOAT32 not in (*claimed.dtypes, *claimed.kv_dtypes)
