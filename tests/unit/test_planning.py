"""The KV cache is sized from what is free; what does not fit is refused with the largest value that does."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.backend import (
    Capabilities,
    Device,
    DeviceConfig,
    DeviceInfo,
    DType,
    KVLayout,
    MemoryInfo,
    UnsupportedError,
)
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.models.config import DecoderConfig
from octavo.planning import check_device, choose_dtype, choose_kv_dtype, plan_cache
from octavo.reference.device import ReferenceDevice

MODEL = DecoderConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
)
BLOCK_BYTES = 2 * 2 * 16 * 2 * 16 * 4  # k and v, layers, tokens, heads, head size, bytes


class Sized(ReferenceDevice):
    """The reference device with memory of a given size."""

    def __init__(self, free: int, total: int, shared: bool) -> None:
        super().__init__(DeviceConfig())
        self._memory = MemoryInfo(free, total, shared)

    def memory(self) -> MemoryInfo:
        return self._memory


class Padding(Sized):
    """A device whose blocks take twice the plain size."""

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return 2 * layout.block_bytes


def _plan(device: Device, weights: int = 0, **options: Any) -> Any:
    return plan_cache(EngineConfig(**options), device, MODEL, DType.FLOAT32, weights)


def test_an_explicit_budget_gives_as_many_blocks_as_fit() -> None:
    plan = _plan(Sized(1 << 30, 1 << 30, True), kv_cache_memory=20 * BLOCK_BYTES + 100, max_model_len=64)
    assert plan.num_blocks == 20
    assert plan.capacity == 19 * 16
    assert plan.max_concurrency == pytest.approx(19 * 16 / 64)


def test_a_layout_that_pads_gets_half_the_blocks() -> None:
    plan = _plan(Padding(1 << 30, 1 << 30, True), kv_cache_memory=20 * BLOCK_BYTES, max_model_len=64)
    assert plan.num_blocks == 10


def test_own_memory_is_used_up_to_its_share_beside_the_weights() -> None:
    total = 100 * BLOCK_BYTES
    plan = _plan(
        Sized(total, total, False), weights=40 * BLOCK_BYTES, gpu_memory_utilization=0.8, max_num_seqs=512,
        max_model_len=32,
    )  # fmt: skip
    assert plan.num_blocks == 40


def test_shared_memory_is_taken_modestly() -> None:
    plan = _plan(Sized(200 * BLOCK_BYTES, 1 << 40, True), max_num_seqs=4)
    assert plan.num_blocks == 50
    plenty = _plan(Sized(1 << 40, 1 << 40, True), max_num_seqs=4)
    assert plenty.bytes <= 4 << 30
    assert plenty.num_blocks == (4 << 30) // BLOCK_BYTES


def test_without_prefix_caching_no_more_blocks_are_taken_than_can_be_used_and_that_is_said() -> None:
    plan = _plan(Sized(1 << 30, 1 << 30, True), kv_cache_memory="64MiB", max_num_seqs=4, enable_prefix_caching=False)
    assert plan.num_blocks == 4 * 16 + 1
    assert "65 blocks instead of" in plan.notes[0]


def test_the_model_context_is_cut_to_the_cache_and_said_so() -> None:
    plan = _plan(Sized(1 << 30, 1 << 30, True), kv_cache_memory=9 * BLOCK_BYTES)
    assert plan.max_model_len == 128
    assert "max_model_len is 128 instead of the model's 256" in plan.notes[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kv_cache_memory": 2 * BLOCK_BYTES}, f"too small for one request.*{3 * BLOCK_BYTES:,} bytes is the least"),
        ({"kv_cache_memory": 9 * BLOCK_BYTES, "max_model_len": 200}, "holds 128 tokens, which is the largest"),
        ({"kv_cache_memory": 1 << 31}, "free beside the weights, which is the largest value that fits"),
        ({"max_model_len": 257}, "made for 256 tokens, which is the largest value"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_largest_value_that_does(options: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _plan(Sized(1 << 30, 1 << 30, True), **options)


@pytest.mark.parametrize(
    ("weights", "offer"),
    [
        (950, f"kv_cache_memory of {50 * BLOCK_BYTES:,} bytes is the largest that fits. A tensor_parallel_size of 2"),
        (998, "A tensor_parallel_size of 2 would leave room; 1 is the largest here."),
        (4000, "A smaller model, or weights of fewer bits, would."),
    ],
)
def test_weights_that_leave_no_room_are_named_with_what_would(weights: int, offer: str) -> None:
    device = Sized(1000 * BLOCK_BYTES, 1000 * BLOCK_BYTES, False)
    with pytest.raises(ConfigError) as refused:
        _plan(device, weights * BLOCK_BYTES, gpu_memory_utilization=0.9)
    said = str(refused.value)
    assert f"The weights take {weights * BLOCK_BYTES:,} of the {1000 * BLOCK_BYTES:,} bytes that are free" in said
    assert f"leave 0 bytes (gpu_memory_utilization 0.9) for a KV cache; one request needs {3 * BLOCK_BYTES:,}." in said
    assert offer in said


def _info(**capabilities: Any) -> DeviceInfo:
    return DeviceInfo("toy", "toy", "toy", "", "toy", Capabilities(**capabilities))


def test_dtypes_are_the_devices_or_the_checkpoints_and_never_another_than_asked() -> None:
    both = (DType.FLOAT32, DType.BFLOAT16)
    free, fixed = _info(dtypes=both, default_dtype=None), _info(dtypes=both, default_dtype=DType.FLOAT32)
    auto = EngineConfig()
    assert choose_dtype(auto, free, DType.BFLOAT16) is DType.BFLOAT16
    assert choose_dtype(auto, free, DType.FLOAT16) is DType.FLOAT32
    assert choose_dtype(auto, fixed, DType.BFLOAT16) is DType.FLOAT32
    assert choose_kv_dtype(auto, _info(dtypes=both), DType.BFLOAT16) is DType.FLOAT32
    with pytest.raises(UnsupportedError, match="backend 'toy' does: auto, float32"):
        choose_dtype(EngineConfig(dtype="bfloat16"), _info(), None)
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        choose_dtype(EngineConfig(dtype="int3"), fixed, None)
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp8'"):
        choose_kv_dtype(EngineConfig(kv_cache_dtype="fp8"), fixed, DType.FLOAT32)


def test_a_model_that_the_device_cannot_run_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="head size is 16; backend 'toy' does: 64, 128"):
        check_device(_info(head_sizes=(64, 128)), MODEL)


def test_a_block_size_the_backend_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UnsupportedError, match="block_size is 17; this backend does: 1, 2, 4, 8, 16"):
        _plan(Sized(1 << 30, 1 << 30, True), block_size=17)
