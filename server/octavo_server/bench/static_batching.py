"""The peer's own process: static batching with transformers' `generate`, driven over lines of JSON.

A batch is padded on the left to its longest prompt and runs to its longest output, as static batching does;
the tokens beyond what a request asked for are dropped and not counted. Weights, arithmetic and KV cache are
float32.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    # Whatever a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr
    task = json.loads(sys.stdin.readline())
    model = _load(task["directory"], task["gguf_file"], task["threads"])
    requests = task["requests"]
    _generate(model, [{**request, "output_tokens": 2} for request in requests[:2]])
    _answer(answers, {"threads": _torch().get_num_threads(), "dtype": str(model.dtype).removeprefix("torch.")})
    for line in sys.stdin:
        size = json.loads(line)["batch_size"]
        started = time.perf_counter()
        outputs = []
        for first in range(0, len(requests), size):
            outputs += _generate(model, requests[first : first + size])
        _answer(answers, {"seconds": time.perf_counter() - started, "outputs": outputs})


def _load(directory: str, gguf_file: str | None, threads: int) -> Any:
    from transformers import AutoModelForCausalLM

    kind = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32", **kind).eval()
    _torch().set_num_threads(threads)
    # Every request has a number of tokens to generate, whatever they are.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _generate(model: Any, batch: list[dict[str, Any]]) -> list[list[int]]:
    torch = _torch()
    width = max(len(request["prompt"]) for request in batch)
    padding = [width - len(request["prompt"]) for request in batch]
    ids = torch.tensor([[0] * pad + request["prompt"] for pad, request in zip(padding, batch, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    longest = max(request["output_tokens"] for request in batch)
    with torch.inference_mode():
        whole = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
    return [row[width : width + request["output_tokens"]].tolist() for row, request in zip(whole, batch, strict=True)]


def _torch() -> Any:
    # transformers has imported it; octavo's own code never does.
    return sys.modules["torch"]


def _answer(stream: Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
