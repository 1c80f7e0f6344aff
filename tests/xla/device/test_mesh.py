"""Tensor parallelism over two devices that the host pretends to be."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import ArraySource, ConcatenatedSource, DeviceConfig, DType, UnsupportedError
from octavo.backend.discovery import open_device
from octavo.errors import ModelError
from octavo_conformance.oracles.models import ModelSpec, tiny_model
from octavo_xla.mesh import ShardMesh

PROMPTS = [[1, 2, 3], [5] * 70, [9, 8, 7, 6]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=1.0, n=3, seed=3, max_tokens=24, ignore_eos=True),  # forks: blocks are copied
    SamplingParams(temperature=0.8, top_p=0.9, seed=4, max_tokens=24, ignore_eos=True, logprobs=2),
]


def _llm(model: Any, size: int, **settings: Any) -> LLM:
    return LLM(
        tiny_model(model).directory, backend="xla", dtype="float32", kv_cache_memory="1MiB", max_model_len=128,
        max_num_seqs=8, max_num_batched_tokens=32, warm_up_seconds=0, tensor_parallel_size=size, sanitize=True,
        check_integrity=True, backend_options={"cache": "off", "host_devices": "2"}, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["xla", "pallas-interpreted"])
def test_two_devices_give_the_tokens_of_one(kernel: str) -> None:
    if kernel == "xla":
        model, prompts, params = ModelSpec("qwen2", "tied"), PROMPTS, PARAMS  # with biases on q, k and v
    else:  # slow: every step interprets the kernels of every shard
        model, prompts = ModelSpec("llama", "tied"), PROMPTS[:1]
        params = [SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)]
    tokens = []
    for size in (1, 2):
        llm = _llm(model, size, kernel=kernel)
        tokens.append([output.token_ids for result in llm.generate(prompts, params) for output in result.outputs])
        assert {len(layer.data.sharding.device_set) for layer in llm.engine._runner._kv} == {size}
        llm.close()
    assert tokens[0] == tokens[1]


def test_a_fused_weight_is_split_part_by_part() -> None:
    device = open_device(
        DeviceConfig(backend="xla", tensor_parallel_size=2, options={"cache": "off", "host_devices": "2"})
    ).device
    q, k = (np.arange(8.0, dtype=np.float32).reshape(4, 2) + 100 * part for part in range(2))
    fused = ConcatenatedSource("qk", [ArraySource("q", q, 0), ArraySource("k", k, 0)])
    loaded = device.load(fused, DType.FLOAT32)
    for rank, shard in enumerate(loaded.addressable_shards):
        mine = slice(2 * rank, 2 * rank + 2)
        np.testing.assert_array_equal(np.asarray(shard.data), np.concatenate([q[mine], k[mine]]))


def test_each_shard_is_read_for_itself_and_never_the_whole() -> None:
    class Watched(ArraySource):
        def shard(self, rank: int, size: int) -> Any:
            return _Part(self, rank, size)

    class _Part(ArraySource):
        def __init__(self, whole: Watched, rank: int, size: int) -> None:
            rows = whole.shape[0] // size
            super().__init__("part", whole.read()[rank * rows : (rank + 1) * rows], 0)

        def read(self) -> np.ndarray:
            read.append(self.shape)
            return super().read()

    read: list[tuple[int, ...]] = []
    device = open_device(
        DeviceConfig(backend="xla", tensor_parallel_size=2, options={"cache": "off", "host_devices": "2"})
    ).device
    device.load(Watched("whole", np.ones((6, 3), np.float32), 0), DType.BFLOAT16)
    assert read == [(3, 3), (3, 3)]


def test_a_shard_is_on_its_device_and_forgotten_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts(Sequence[np.ndarray]):
        """Made when they are asked for, as a checkpoint's are."""

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            value = (7, 8)[index]
            events.append(f"{value} read beside {sum(part() is not None for part in made)}")
            part = _copied_by_jax(1 << 20)
            part[:] = value
            made.append(weakref.ref(part))
            return part

    class Arriving:
        """What jax gives back before the transfer is done; the host's own are done at once."""

        def __init__(self, array: jax.Array) -> None:
            self.array = array

        def block_until_ready(self) -> jax.Array:
            events.append(f"{self.array[0]:.0f} arrived")
            return self.array

    mesh, put = ShardMesh(jax.devices(), 2), jax.device_put
    events: list[str] = []
    made: list[weakref.ref[np.ndarray]] = []
    monkeypatch.setattr(jax, "device_put", lambda part, device: Arriving(put(part, device)))
    whole = mesh.place(mesh.split(0), (2 << 20,), Parts())
    assert events == ["7 read beside 0", "7 arrived", "8 read beside 0", "8 arrived"]
    assert [shard.data[0] for shard in whole.addressable_shards] == [7, 8]


def _copied_by_jax(entries: int) -> np.ndarray:
    """float32 [entries] where jax's host devices would not use it in place: they want 64 bytes' alignment."""
    memory = np.empty(entries + 16, np.float32)
    start = next(index for index in range(16) if memory[index:].ctypes.data % 64)
    return memory[start : start + entries]


def test_a_model_that_does_not_divide_is_refused_with_the_sizes_that_would() -> None:
    with pytest.raises(
        ModelError, match=r"among 2 shards: it has 1 key/value heads and a .* A tensor_parallel_size of 1 would"
    ):
        _llm(ModelSpec("llama", "one_kv_head"), 2)
    with pytest.raises(ModelError, match=r"among 2 shards: it has a vocabulary of 259"):
        _llm(ModelSpec("llama"), 2)


def test_a_tensor_whose_axis_does_not_divide_is_refused() -> None:
    device = open_device(
        DeviceConfig(backend="xla", tensor_parallel_size=2, options={"cache": "off", "host_devices": "2"})
    ).device
    with pytest.raises(UnsupportedError, match=r"axis 0 has 5 entries and does not divide into 2 shards; 1 would do"):
        device.load(ArraySource("odd", np.ones((5, 3), np.float32), 0), DType.FLOAT32)
