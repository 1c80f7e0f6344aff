"""The engine on a Llama-3-8B-shaped model: one stream, many requests, and what the host does meanwhile."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.busy import idle_share
from benchmarks.gpu.part import Bench, Measurement
from benchmarks.gpu.random_model import open_engine
from benchmarks.gpu.scale import Scale, Traffic
from benchmarks.gpu.traffic import Run, abandon, drive, requests_of
from octavo.backend import ArraySource, DType
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo_server.bench.summary import Summary

_RESERVE = 5.0
"""Seconds of the part's time that no run may use up."""

_SHORTEST = 10.0
"""Seconds that a run gets even so."""


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    yield Measurement("serving/load_rate", _load_rate)
    yield Measurement("serving/open", _open, limit=90.0)
    yield Measurement("serving/single_stream", _single_stream)
    yield Measurement(f"serving/host_time/running={scale.running.concurrency}", _host_time, limit=90.0)
    for traffic in scale.traffics:
        yield Measurement(f"serving/throughput/{traffic.name}", partial(_throughput, traffic))


def engine_config(scale: Scale) -> EngineConfig:
    """What all measurements of the model run with."""
    longest = max(traffic.prompt + traffic.output for traffic in (*scale.traffics, scale.single, scale.running))
    return EngineConfig(
        model=scale.model_name,
        backend=scale.backend,
        kernel=scale.kernel,
        dtype=scale.dtype,
        max_model_len=longest,
        kv_cache_memory="64MiB" if scale.dry else None,
        max_num_seqs=max(traffic.concurrency for traffic in (*scale.traffics, scale.running)),
        max_num_batched_tokens=scale.batched_tokens,
    )


def _load_rate(bench: Bench) -> dict[str, Any]:
    """`Device.load` of a mapped file, its pages in memory: the device's share of loading a checkpoint."""
    rows = bench.scale.load_bytes // (2 << 10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        np.random.default_rng(0).integers(0, 1 << 14, rows << 10, dtype=np.uint16).tofile(path)
        bits = np.memmap(path, np.uint16, mode="r").reshape(rows, 1 << 10)
        source = ArraySource("weights", bits.view(DType.BFLOAT16.numpy))
        samples = []
        for _ in range(3):
            started = time.perf_counter()
            loaded = bench.device.load(source, DType(bench.scale.dtype))
            bench.device.download(loaded[:1])
            samples.append(time.perf_counter() - started)
            del loaded
    seconds = Summary.of(samples[1:])
    return {"seconds": seconds.as_data(), "bytes": bits.nbytes, "bytes_per_second": bits.nbytes / seconds.median}


def _open(bench: Bench) -> dict[str, Any]:
    """The model on the device, in this process, where the device is open and torch imported already."""
    phases: dict[str, float] = {}
    info = _engine(bench, phases.__setitem__).info
    return {
        "phases": phases,
        "weights_bytes": info.weights_bytes,
        "dtype": info.dtype,
        "kv_cache_bytes": info.kv_cache_bytes,
        "kv_cache_tokens": info.num_blocks * info.block_size,
        "block_size": info.block_size,
        "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
        "notes": list(info.notes),
    }


def _engine(bench: Bench, took: Callable[[str, float], None] = lambda phase, seconds: None) -> Engine:
    """The engine of this process; the first measurement that wants it opens it."""
    if "engine" not in bench.kept:
        # Where the host waits for the device is in `download` and nowhere else: watched, it tells host from device.
        bench.kept["waiting"] = _watched(bench.device)
        config = engine_config(bench.scale)
        bench.kept["engine"] = open_engine(bench.device, bench.torch_device, config, bench.scale.model, took)
    engine: Engine = bench.kept["engine"]
    engine.reset_prefix_cache()
    return engine


def _watched(device: Any) -> list[float]:
    """Has the device note how long each download took; returns the notes."""
    waited: list[float] = []
    download = device.download

    def timed(array: Any) -> Any:
        started = time.perf_counter()
        try:
            return download(array)
        finally:
            waited.append(time.perf_counter() - started)

    device.download = timed
    return waited


def _single_stream(bench: Bench) -> dict[str, Any]:
    """One request at a time: time to first token, and per output token after it."""
    engine, traffic = _engine(bench), bench.scale.single
    drive(engine, requests_of(engine, traffic, "warm-up"), bench.seconds_left)  # compiles, captures
    engine.reset_prefix_cache()
    run = drive(engine, requests_of(engine, traffic), bench.seconds_left)
    first = next(point for point in run.points if point.tokens)
    times = [point.seconds for point in run.points if point.tokens]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    per_token = (run.seconds - first.seconds) / max(1, run.tokens - first.tokens)
    return {
        "time_to_first_token": first.seconds,
        "seconds_per_token": per_token,
        "gaps": Summary.of(gaps).as_data(),
        "prompt": traffic.prompt,
        "output_tokens": run.tokens,
        "complete": run.complete,
        # Each token reads all weights but the embedding's table, of which it takes one row.
        "weight_bytes_per_second": _read_bytes(engine, bench.scale) / per_token,
    }


def _read_bytes(engine: Engine, scale: Scale) -> int:
    table = int(scale.model["vocab_size"]) * scale.hidden * DType(engine.info.dtype).itemsize
    return engine.info.weights_bytes - table


def _throughput(traffic: Traffic, bench: Bench) -> dict[str, Any]:
    """All requests at the start; output tokens over the time from their arrival to the last token."""
    engine = _engine(bench)
    before = engine.stats()

    def figures(run: Run) -> dict[str, Any]:
        after = engine.stats()
        wanted = traffic.concurrency * traffic.output
        return {
            "seconds": run.seconds,
            "output_tokens": run.tokens,
            "output_tokens_per_second": run.tokens / run.seconds,
            "complete": run.complete,
            "shortened": "" if run.complete else f"cut short after {run.tokens} of {wanted} output tokens",
            "steps": run.steps,
            "preemptions": after.num_preemptions - before.num_preemptions,
            "first_tokens": list(run.first_tokens),
            "curve": run.curve(),
        }

    requests, seconds = requests_of(engine, traffic), _share(bench, traffic)
    return figures(drive(engine, requests, seconds, note=lambda run: bench.note(figures(run))))


def _share(bench: Bench, traffic: Traffic) -> float:
    """Seconds for one run: of the time that is left, its part of the tokens still to be generated in all runs."""
    traffics = bench.scale.traffics
    to_come = sum(one.concurrency * one.output for one in traffics[traffics.index(traffic) :])
    left = bench.seconds_left - _RESERVE
    return max(_SHORTEST, left * traffic.concurrency * traffic.output / to_come)


def _host_time(bench: Bench) -> dict[str, Any]:
    """A step in which all requests decode: its wall time, the host's part of it, and how idle the device is.

    The host's part is the step less the time in which it waits for the device's results. On a device that runs behind
    the host, the host's part is hidden as far as the device is never idle.
    """
    engine, traffic = _engine(bench), bench.scale.running
    waited = bench.kept["waiting"]
    requests = requests_of(engine, traffic)
    for request in requests:
        engine.add(request)
    started: set[str] = set()
    while len(started) < len(requests):  # the prompts
        started |= {update.request_id for update in engine.step() if update.sequences}
    steps = max(2, traffic.output // 2 - bench.scale.profiled_steps - 2)
    for _ in range(2):  # the first steps of a kind compile and capture
        engine.step()
    wall, host = [], []
    for _ in range(steps):
        waited.clear()
        begin = time.perf_counter()
        engine.step()
        wall.append(time.perf_counter() - begin)
        host.append(wall[-1] - sum(waited))
    idle = idle_share(lambda: [engine.step() for _ in range(bench.scale.profiled_steps)], bench.torch_device)
    abandon(engine, requests)
    return {
        "running": len(requests),
        "steps": steps,
        "step_seconds": Summary.of(wall).as_data(),
        "host_seconds": Summary.of(host).as_data(),
        "device_idle_share": idle,
        "device_type": torch.device(bench.torch_device).type,
    }
