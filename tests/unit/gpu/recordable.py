"""Prints what a model's step asks of the host, for each kind of sampling: JSON, by name. Run in a process of its own,
since Triton must compile and not interpret.

The step runs on torch's meta tensors, which have no values and are on no host: what reads a value fails, and what makes
a tensor on the host, to be copied to the card in the middle of a recording, is seen.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.backend import AttentionMetadata, DenseWeight, RotaryTable, StepInputs
from octavo.backend.collectives import Collectives
from octavo.backend.step import Feedback
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights, LayerWeights
from octavo.runner import Runner
from octavo.sampling.inputs import SamplerFeatures, SamplingInputs, Truncation
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, Recorder
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import TuningTable
from octavo_torch.triton_ops import TritonOps

ROWS, BLOCKS, HIDDEN, INNER, VOCABULARY = 8, 8, 64, 128, 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}
SAMPLING = {
    "greedy": SamplerFeatures(),
    **{kind.value: SamplerFeatures(random=True, truncation=kind) for kind in Truncation},
    "everything": SamplerFeatures(True, Truncation.FULL, edits=True, mask=True, logprobs=5),
    "a careless step": SamplerFeatures(),
}


class Watch(TorchDispatchMode):
    """Notes each operation that leaves a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type != "meta" for leaf in tree_leaves(made)):
            self.seen.append(f"{function} on the host")
        return made


class Card:
    """As much of a device as a step needs."""

    def __init__(self) -> None:
        self.ops = TritonOps(KernelRuntime(TARGETS["sm_90"], TuningTable(), Recorder()))
        self.collectives = Collectives()


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return floats(*shape, dtype=torch.int32)


def half(*shape: int) -> torch.Tensor:
    return floats(*shape, dtype=torch.bfloat16)


def weights() -> DecoderWeights:
    layer = LayerWeights(
        qkv=DenseWeight(half(2 * HIDDEN, HIDDEN)),
        o=DenseWeight(half(HIDDEN, HIDDEN)),
        gate_up=DenseWeight(half(2 * INNER, HIDDEN)),
        down=DenseWeight(half(HIDDEN, INNER)),
        input_norm=half(HIDDEN),
        post_norm=half(HIDDEN),
    )
    embedding = DenseWeight(half(VOCABULARY, HIDDEN))
    return DecoderWeights(embedding, (layer, layer), half(HIDDEN), None, RotaryTable(floats(128, 16)))


def inputs(features: SamplerFeatures) -> StepInputs:
    sampling = SamplingInputs(floats(ROWS), ints(ROWS), floats(ROWS), floats(ROWS), ints(ROWS), ints(ROWS), ints(ROWS))
    if features.edits:
        edits = {name: floats(ROWS, 8) for name in ("edit_bias", "edit_repetition", "edit_penalty")}
        sampling = replace(sampling, edit_ids=ints(ROWS, 8), **edits)
    if features.mask:
        sampling = replace(sampling, mask_bits=ints(ROWS, VOCABULARY // 32))
    meta = AttentionMetadata(
        ints(ROWS), ints(ROWS), ints(ROWS), ints(ROWS + 1), ints(ROWS), ints(ROWS, BLOCKS), decode_only=True
    )
    return StepInputs(ints(ROWS), ints(ROWS), meta, sampling=sampling, feedback=Feedback(ints(8), ints(ROWS), ints(8)))


def asked(name: str, features: SamplerFeatures) -> list[str]:
    runner = Runner.__new__(Runner)  # its step alone: there is no device to load a model onto
    runner._device, runner._model = Card(), DecoderConfig.from_hf(CONFIG)  # type: ignore[assignment]
    kv = [PagedKV(half(20, 16, 2, 16), half(20, 16, 2, 16)) for _ in range(2)]
    step, watch = runner._make_step(features), Watch()
    try:
        with torch.inference_mode(), watch:
            step(weights(), kv, inputs(features))
            if name == "a careless step":  # the watch must be able to see one
                torch.ones(2).sum()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        watch.seen.append(f"{type(error).__name__} in {where.filename}:{where.lineno}: {error}")
    return watch.seen


if __name__ == "__main__":
    print(json.dumps({name: asked(name, features) for name, features in SAMPLING.items()}))
