"""The demo model, and transformers as the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest

from octavo.models.resolve import resolve_model


class Oracle:
    """The demo model in transformers, float32: logits of every position of a sequence of token ids."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        path = resolve_model("demo").path
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        self._cached = lru_cache(maxsize=256)(self._logits)

    def logits(self, token_ids: Sequence[int]) -> Any:
        """float32 [tokens, vocab], a torch tensor."""
        return self._cached(tuple(token_ids))

    def _logits(self, token_ids: tuple[int, ...]) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([token_ids])).logits[0].float()

    def check_greedy(self, prompt: Sequence[int], output: Sequence[int], near: float = 1e-4) -> int:
        """Position of the first output token that is not transformers' best one, or len(output).

        Given the same tokens before it, greedy decoding takes the argmax: so one forward pass over prompt and output
        decides each position. Fails unless the first difference stands where transformers' two best logits are within
        `near`.
        """
        logits = self.logits([*prompt, *output])[len(prompt) - 1 : -1]
        for position, (row, token) in enumerate(zip(logits, output, strict=True)):
            best = int(row.argmax())
            if token == best:
                continue
            gap = float(row[best] - row[token])
            assert gap <= near, f"output token {position} is {token}, transformers has {best}, better by {gap:.2e}"
            return position
        return len(output)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()
