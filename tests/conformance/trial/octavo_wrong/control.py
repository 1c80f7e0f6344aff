"""The control: the device that the wrong ones are made from, doing right what some of them claim and get wrong."""

from __future__ import annotations

from dataclasses import replace

from octavo.backend import DeviceConfig, DType, KVCache, KVLayout
from octavo_wrong.device import WrongDevice
from octavo_wrong.plain import PlainAttention


class Control(WrongDevice):
    """Of two shards it makes one, as a mesh does; a cache of int8 it keeps in float16, and says what that takes."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(replace(config, tensor_parallel_size=1), name)
        self.claim(max_tensor_parallel=2, kv_dtypes=(*self.info.capabilities.kv_dtypes, DType.INT8))
        self.ops = PlainAttention()

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        return super().allocate_kv(_kept(layout), blocks)

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return super().kv_block_bytes(_kept(layout))


def _kept(layout: KVLayout) -> KVLayout:
    return replace(layout, dtype=DType.FLOAT16) if layout.dtype is DType.INT8 else layout
