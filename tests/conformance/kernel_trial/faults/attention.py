"""Paged attention."""

from __future__ import annotations

from kernel_trial.fault import KernelFault

ATTENTION: tuple[KernelFault, ...] = (
    KernelFault(
        "causal-mask-strict",
        "A token does not see itself.",
        "paged_attention",
        "attention/softmax.py",
        "key[None, :] <= scoring.position[:, None]",
        "key[None, :] < scoring.position[:, None]",
    ),
    KernelFault(
        "window-one-too-long",
        "A token at p sees window + 1 tokens.",
        "paged_attention",
        "attention/softmax.py",
        "key[None, :] > scoring.position[:, None] - scoring.window",
        "key[None, :] >= scoring.position[:, None] - scoring.window",
        near="window=7,mix=decode",
    ),
    KernelFault(
        "softcap-linear",
        "The softcap scales scores and caps nothing.",
        "paged_attention",
        "attention/softmax.py",
        "scores = 1.0 - 2.0 / (tl.exp2(scores * scoring.inner) + 1.0)",
        "scores = scores * scoring.inner * 0.34657359",
        near="softcap",
    ),
    KernelFault(
        "maximum-not-rescaled",
        "What was summed before a larger score came is not rescaled.",
        "paged_attention",
        "attention/softmax.py",
        "values, output * decay[:, None],",
        "values, output,",
        near="rising",
    ),
    KernelFault(
        "values-not-masked",
        "Values that no row sees are loaded, and weighted with 0: 0 * NaN is NaN.",
        "paged_attention",
        "attention/softmax.py",
        "values = load_rows(pages.value + row, inside,",
        "values = load_rows(pages.value + row, key >= 0,",
        near="mix=decode",
    ),
    KernelFault(
        "key-scale-forgotten",
        "Keys of eight bits are not multiplied by their scales.",
        "paged_attention",
        "attention/softmax.py",
        "scores *= scale_of_decoded(key_scale, MANTISSA, FLOAT8)[None, :]",
        "scores *= scale_of_decoded(1.0, MANTISSA, FLOAT8)",
        near="float8",
    ),
    KernelFault(
        "value-scale-of-key",
        "Values of eight bits are multiplied by the scales of the keys.",
        "paged_attention",
        "attention/softmax.py",
        "weights *= scale_of_decoded(value_scale, MANTISSA, FLOAT8)[None, :]",
        "weights *= scale_of_decoded(key_scale, MANTISSA, FLOAT8)[None, :]",
        near="int8",
    ),
    KernelFault(
        "block-of-next-tile",
        "A tile's slots are looked up in the blocks of the next one.",
        "paged_attention",
        "attention/softmax.py",
        "following = load_blocks(pages, begin + tl.arange(0, TILE), highest, BLOCK_SIZE)",
        "following = load_blocks(pages, begin + TILE + tl.arange(0, TILE), highest, BLOCK_SIZE)",
        near="mix=one",
    ),
    KernelFault(
        "block-table-of-neighbour",
        "Each sequence but the first reads through the block table of the one before it.",
        "paged_attention",
        "attention/attend.py",
        "block_tables + sequence.to(tl.int64) * table_row",
        "block_tables + (tl.maximum(sequence, 1) - 1).to(tl.int64) * table_row",
    ),
    KernelFault(
        "head-grouping",
        "Query head h reads KV head h % kv_heads instead of h // (heads / kv_heads).",
        "paged_attention",
        "attention/attend.py",
        "head = kv * GROUP + row % GROUP",
        "head = kv + row % GROUP * tl.num_programs(1)",
    ),
    KernelFault(
        "sink-in-every-split",
        "Each split of the keys adds the sink, and merging adds it once more.",
        "paged_attention",
        "attention/attend.py",
        "            part = where * splits + split\n",
        "            if SINKS:\n"
        "                sink = tl.load(sinks + head, mask=inside, other=0.0)\n"
        "                total, decay = add_sink(best, total, sink)\n"
        "                best = tl.maximum(best, sink.to(tl.float32) * 1.4426950408889634)\n"
        "                output *= decay[:, None]\n"
        "            part = where * splits + split\n",
        near="sinks=1,mix=hundreds",
    ),
    KernelFault(
        "sinks-scaled",
        "The sink is taken for a score in binary units already.",
        "paged_attention",
        "attention/softmax.py",
        "score = sink.to(tl.float32) * 1.4426950408889634",
        "score = sink.to(tl.float32)",
        near="sinks=0",
    ),
    KernelFault(
        "merge-without-rescale",
        "Splits are added up as if each had the same largest score.",
        "paged_attention",
        "attention/merge.py",
        "share = tl.exp2(bests - anchor[:, None])",
        "share = tl.where(inside, 1.0, 0.0)",
        near="rising",
    ),
    KernelFault(
        "last-split-dropped",
        "The last of several splits is not merged.",
        "paged_attention",
        "attention/merge.py",
        "part[None, :] < needed[:, None]",
        "part[None, :] < needed[:, None] - 1",
        near="float32/mix=hundreds",
    ),
)
