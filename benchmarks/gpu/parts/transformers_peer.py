"""transformers on the same weights and prompts: `generate` in static batches, and its continuous batching."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.part import AbsentError, Bench, Measurement
from benchmarks.gpu.random_weights import fill
from benchmarks.gpu.scale import Scale, Traffic
from benchmarks.gpu.traffic import prompts_of

_RESERVE = 5.0
"""Seconds that a run leaves to what comes after it."""


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    yield Measurement("transformers/open", _open, limit=60.0)
    yield Measurement("transformers/generate/single_stream", _single_stream)
    for traffic in scale.peer_static:
        yield Measurement(f"transformers/generate/{traffic.name}", partial(_generate, traffic), limit=90.0)
    for traffic in scale.peer_continuous:
        yield Measurement(f"transformers/continuous/{traffic.name}", partial(_continuous, traffic), limit=90.0)


def _open(bench: Bench) -> dict[str, Any]:
    started = time.perf_counter()
    model = _model(bench)
    _wait(bench)
    return {
        "seconds": time.perf_counter() - started,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": model.config._attn_implementation,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _model(bench: Bench) -> Any:
    """The model of this process, made on the device and filled name by name with the weights Octavo runs with."""
    if "model" not in bench.kept:
        from transformers import AutoConfig, AutoModelForCausalLM

        scale = bench.scale
        fields = {key: value for key, value in scale.model.items() if key not in ("torch_dtype", "rope_theta")}
        rope = {"rope_type": "default", "rope_theta": scale.model["rope_theta"]}
        config = AutoConfig.for_model(**fields, rope_parameters=rope, eos_token_id=None, pad_token_id=0)
        with torch.device(bench.torch_device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, scale.dtype), attn_implementation="sdpa"
            )
        for name, parameter in model.named_parameters():
            fill(name, parameter)
        model.eval()
        # Every request has a number of tokens to generate, whatever they are.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        bench.kept["model"] = model
    return bench.kept["model"]


def _single_stream(bench: Bench) -> dict[str, Any]:
    traffic = bench.scale.peer_single
    _static(bench, traffic, tokens=2)  # loads kernels
    one, _ = _static(bench, traffic, tokens=1)
    whole, outputs = _static(bench, traffic, tokens=traffic.output)
    generated = len(outputs[0])
    return {
        "time_to_first_token": one,
        "seconds_per_token": (whole - one) / max(1, generated - 1),
        "output_tokens": generated,
    }


def _generate(traffic: Traffic, bench: Bench) -> dict[str, Any]:
    """One static batch. All requests are of one length, so that nothing of it is padding: the best case for it."""
    seconds, outputs = _static(bench, traffic, traffic.output)
    return _figures(traffic, seconds, outputs)


def _static(bench: Bench, traffic: Traffic, tokens: int) -> tuple[float, list[list[int]]]:
    model = _model(bench)
    prompts = prompts_of(traffic, model.config.vocab_size)
    ids = torch.tensor(prompts, device=bench.torch_device)
    limit = max(1.0, min(bench.scale.peer_seconds, bench.seconds_left - _RESERVE))
    _wait(bench)
    started = time.perf_counter()
    with torch.inference_mode():
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            max_time=limit,
            do_sample=False,
        )
    _wait(bench)
    return time.perf_counter() - started, whole[:, ids.shape[1] :].tolist()


def _continuous(traffic: Traffic, bench: Bench) -> dict[str, Any]:
    """Its continuous batching, warmed up as it does by itself before the time starts."""
    model = _model(bench)
    try:
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints
    except ImportError as error:
        raise AbsentError(f"This transformers has no continuous batching as used here: {error}.") from None
    prompts = prompts_of(traffic, model.config.vocab_size)
    config = type(model.generation_config)(
        max_new_tokens=traffic.output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    hints = WorkloadHints(
        max_prompt_length=traffic.prompt, max_generated_length=traffic.output, num_requests=traffic.concurrency
    )
    limit = max(1.0, min(bench.scale.peer_seconds, bench.seconds_left - _RESERVE))
    outputs: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(**bench.scale.peer_memory),
        timeout=5,
        workload_hints=hints,
    ) as manager:
        started = time.perf_counter()
        order = list(manager.add_requests(inputs=prompts, max_new_tokens=traffic.output))
        while len(outputs) < len(prompts) and time.perf_counter() - started < limit:
            result = manager.get_result(timeout=0.1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(f"A request failed: {result.error}")
                outputs[result.request_id] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError("Its generation thread ended.")
        seconds = time.perf_counter() - started
    return _figures(traffic, seconds, [outputs.get(name, []) for name in order])


def _figures(traffic: Traffic, seconds: float, outputs: list[list[int]]) -> dict[str, Any]:
    tokens, wanted = sum(map(len, outputs)), traffic.concurrency * traffic.output
    return {
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds,
        "complete": tokens == wanted,
        "shortened": "" if tokens == wanted else f"cut short after {tokens} of {wanted} output tokens",
        "first_tokens": [ids[0] if ids else None for ids in outputs],
    }


def _wait(bench: Bench) -> None:
    if bench.torch_device.type != "cpu":
        torch.get_device_module(bench.torch_device).synchronize()
