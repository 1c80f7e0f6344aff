"""What runs, and why, in lines for a person and in plain data for a program."""

from __future__ import annotations

from dataclasses import asdict

from octavo.loading import EngineInfo


def describe(info: EngineInfo) -> list[str]:
    """Lines that `octavo serve` and `octavo check` print."""
    return [
        f"Model:     {info.model} ({info.architecture}), weights {size(info.weights_bytes)} in {info.dtype}",
        f"Backend:   {info.backend} on {info.device}, attention kernel {info.kernel}",
        f"KV cache:  {size(info.kv_cache_bytes)} in {info.kv_cache_dtype}: {info.num_blocks} blocks of "
        f"{info.block_size} tokens",
        f"Context:   {info.max_model_len} tokens; {info.max_concurrency:.1f} requests that long fit at once",
        f"Batch:     at most {info.max_num_seqs} sequences and {info.max_num_batched_tokens} tokens a step",
        *(f"Note:      {note}" for note in info.notes),
    ]


def as_data(info: EngineInfo) -> dict[str, object]:
    """The same for `--json`."""
    return asdict(info)


def size(count: int) -> str:
    """Bytes in the largest unit that keeps the number above one."""
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
