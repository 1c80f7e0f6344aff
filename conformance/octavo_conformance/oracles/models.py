"""Tiny random models of every family, made on the spot by transformers, which is also their oracle.

A model is a directory as a checkpoint is (safetensors, config.json, a byte-level tokenizer), so it goes through the
readers that real ones go through. It is made once in a process and is gone with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.backend import DType
from octavo.models.config import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 259
"""256 bytes and three special tokens: a prime's neighbour that no tile divides."""

BOS, EOS, PAD = 256, 257, 258

LAYERS, HEADS, KV_HEADS, LONGEST = 2, 6, 2, 2048

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": LONGEST,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}

_STRETCHED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": {
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "biases": {"attention_bias": True, "mlp_bias": True},
            "one_kv_head": {"num_key_value_heads": 1},
            "no_groups": {"num_key_value_heads": HEADS},
            "gelu": {"hidden_act": "gelu_pytorch_tanh"},
            "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
            "llama3": {
                "rope_parameters": {
                    **_STRETCHED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                }
            },
            "yarn": {"rope_parameters": {**_STRETCHED, "rope_type": "yarn", "beta_fast": 4.0}},
        },
        "mistral": {
            "plain": {"sliding_window": None},
            "window=7": {"sliding_window": 7},
        },
        "qwen2": {
            "plain": {"use_sliding_window": False},
            "tied": {"use_sliding_window": False, "tie_word_embeddings": True},
            "upper_window=5": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        },
        "qwen3": {
            "plain": {"use_sliding_window": False},
            "lower_window=6": {
                "use_sliding_window": True,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        },
    }
)  # fmt: skip
"""By family (transformers' `model_type`) and variant: the fields in which its configuration departs from `_SHAPE`."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A tiny model: a row of `VARIANTS`, its weights rounded to `dtype`, heads of `head_size` entries."""

    family: str
    variant: str = "plain"
    dtype: DType = DType.FLOAT32
    head_size: int = 16


class TinyModel:
    """A model directory and its oracle. config: the model as core reads it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._folder = TemporaryDirectory(prefix="octavo-conformance-")
        self.directory = Path(self._folder.name)
        self._model = _random_model(spec)
        _save_model(self._model, self.directory)
        _save_tokenizer(self.directory)
        self._model.double()
        self.config = DecoderConfig.from_hf(self._model.config.to_dict())
        self._cached = lru_cache(maxsize=256)(self._forward)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """The logits after each token of one sequence, computed in float64: [tokens, vocab]. Not to be written to."""
        return self._cached(tuple(int(token) for token in token_ids))

    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """Their log-softmax, [tokens, vocab]."""
        logits = self.logits(token_ids)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    def shortfalls(self, prompt: Sequence[int], output: Sequence[int]) -> NDArray[np.float64]:
        """By how much each output token's logit stays below the best one, given the tokens before it: [output].

        Greedy decoding takes the best, so everything is 0 but for ties that rounding decides. One forward pass over
        prompt and output (teacher forcing) says it of each position, also behind such a tie.
        """
        rows = self.logits([*prompt, *output])[len(prompt) - 1 : -1]
        taken = rows[np.arange(len(output)), np.asarray(output, np.int64)]
        return np.asarray(rows.max(axis=-1) - taken)

    def _forward(self, token_ids: tuple[int, ...]) -> NDArray[np.float64]:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([token_ids])).logits[0]
        return np.asarray(logits.numpy(), np.float64)


@cache
def tiny_model(spec: ModelSpec) -> TinyModel:
    """The model of a spec; the same one for each call in a process."""
    return TinyModel(spec)


def _random_model(spec: ModelSpec) -> PreTrainedModel:
    """In the spec's dtype, with random numbers in every parameter: transformers' own biases are 0 and norms 1."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**_SHAPE, "head_dim": spec.head_size, **VARIANTS[spec.family][spec.variant]}
    config = AutoConfig.for_model(spec.family, **fields)
    config._attn_implementation = "eager"  # the one that is written out, and exact in float64
    model = AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(zlib.crc32(f"{spec.family}/{spec.variant}/{spec.head_size}".encode()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            values = _mean(name) + _deviation(name, shape) * rng.standard_normal(shape)
            parameter.copy_(torch.from_numpy(values))
    return model.to(getattr(torch, spec.dtype.value))


def _save_model(model: PreTrainedModel, directory: Path) -> None:
    """As `save_pretrained` does, without its progress bar."""
    from safetensors.torch import save_file

    # Parameters and not the state: a tied embedding is there once.
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(directory)


def _mean(name: str) -> float:
    return 1.0 if name.endswith("norm.weight") else 0.0


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    """Such that a token's logits depend on those before it, and that rounding is not amplified from layer to layer."""
    if len(shape) == 1:
        return 0.2
    return 0.5 if "embed" in name else float(shape[-1] ** -0.5)


def _save_tokenizer(directory: Path) -> None:
    """A token a byte, so that any text can be a prompt and any token has a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
