"""Level `ops`: a cache of more blocks than 16 bits number, as every server has one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from octavo.backend import DType, KVLayout
from octavo_conformance.case import Case, Needs
from octavo_conformance.cases.ops.operation import numbers, op_case
from octavo_conformance.hostile.batch import Chunk, assemble
from octavo_conformance.oracles.attention import attention
from octavo_conformance.workbench import PRECISE, Workbench

FAR = 1 << 16
"""What 16 bits cannot hold: block FAR + n would be block n."""

HEADS, KV_HEADS = 2, 1


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        needs = Needs(dtypes=(dtype,), kv_dtypes=(dtype,))
        for op in ("write_kv", "paged_attention"):
            yield op_case(op, dtype, "far", partial(_far, op, dtype), quick=True, needs=needs)


def _far(op: str, dtype: DType, bench: Workbench) -> None:
    """Two sequences whose blocks and slots are the same numbers in their lowest 16 bits."""
    device, block_size = bench.device, min(bench.capabilities.block_sizes)
    near = (7, 3, 12)
    tables = (near, tuple(FAR + block for block in near))
    context = 3 * block_size
    batch = assemble([Chunk(context, 1)] * 2, tables, block_size, num_blocks=FAR + 16)
    layout = KVLayout(1, KV_HEADS, bench.head_size, block_size, dtype, (None,), HEADS)
    kv = list(device.allocate_kv(layout, batch.num_blocks))
    q = numbers(bench, (2, HEADS, layout.head_size), dtype)
    k, v = (numbers(bench, (2 * context, KV_HEADS, layout.head_size), dtype) for _ in range(2))
    slots = np.concatenate([batch.slots(sequence, np.arange(context)) for sequence in range(2)])
    order = bench.rng.permutation(2 * context)
    kv[0] = device.ops.write_kv(kv[0], *(device.upload(array[order]) for array in (k, v, slots)))
    meta = device.stage(batch.inputs).attention
    scale = layout.head_size**-0.5
    came = device.download(device.ops.paged_attention(device.upload(q.copy()), kv[0], meta, scale))
    expected = np.concatenate(
        [
            attention(q[row : row + 1], k[part], v[part], scale)
            for row, part in enumerate((slice(context), slice(context, None)))
        ]
    )
    inputs = (
        f"two contexts of {context} tokens in blocks {tables[0]} and {tables[1]} of {block_size}, {HEADS}x{KV_HEADS} "
        f"heads of {layout.head_size}"
    )
    bench.check_form(op, came, q.shape, dtype, inputs)
    bench.measure("paged_attention", dtype, came, expected, f"{inputs}; attention over what write_kv stored")
