"""Checkpoints in GGUF: llama.cpp's metadata and tensor names as Hugging Face's, tensors dequantized when read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from octavo.backend.dtype import DType
from octavo.backend.weights import ArraySource, TensorSource
from octavo.errors import ModelError
from octavo.models.checkpoint.checkpoint import Checkpoint
from octavo.models.checkpoint.gguf_file import GGUFFile, GGUFTensor, read_gguf


@dataclass(frozen=True, slots=True)
class _Architecture:
    """permuted: the converter reordered the rows of q and k from halves to the pairs that ggml's rotary takes."""

    hf_name: str
    permuted: bool = False


_ARCHITECTURES = MappingProxyType(
    {
        "llama": _Architecture("LlamaForCausalLM", permuted=True),
        "qwen2": _Architecture("Qwen2ForCausalLM"),
        "qwen3": _Architecture("Qwen3ForCausalLM"),
    }
)
_REQUIRED = MappingProxyType(
    {
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "context_length": "max_position_embeddings",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    }
)
_OPTIONAL = MappingProxyType(
    {
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    }
)
_SCALING = MappingProxyType(
    {
        "rope.scaling.factor": "factor",
        "rope.scaling.original_context_length": "original_max_position_embeddings",
        "rope.scaling.attn_factor": "attention_factor",
    }
)
_TENSORS = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_F32, _F16, _BF16 = 0, 1, 30  # ggml's numbers
_PLAIN = MappingProxyType({_F32: DType.FLOAT32, _F16: DType.FLOAT16, _BF16: DType.BFLOAT16})
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(\w+)")
_COMPUTED = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd"})


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a .gguf file; only its header is read.

    Raises ModelError: no GGUF file, cut short, an architecture or a tensor type that is not supported.
    """
    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise ModelError(
            f"{path} holds the architecture {name!r}, which is not supported; supported are "
            f"{', '.join(_ARCHITECTURES)}."
        )
    _check_types(file)
    architecture = _ARCHITECTURES[name]
    stored = {tensor.name: tensor for tensor in file.tensors}
    config = _config(file, name, architecture, stored)
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads", heads["q_proj"])
    tensors: dict[str, TensorSource] = {}
    for tensor in file.tensors:
        hf_name = _hf_name(tensor.name)
        if hf_name is None:
            continue
        permuted = heads.get(hf_name.split(".")[-2], 0) if architecture.permuted else 0
        if permuted and tensor.shape[0] % (2 * permuted):
            raise ModelError(
                f"{path}: {tensor.name} of shape {list(tensor.shape)} does not divide among {permuted} heads."
            )
        tensors[hf_name] = _source(hf_name, tensor, permuted)
    return Checkpoint(path, config, tensors)


def _hf_name(name: str) -> str | None:
    """The Hugging Face name of a tensor, or None for one that is not part of the decoder (frequency factors).

    A layer's tensor of an unknown role keeps it: loading then says that it has no place, and drops nothing.
    """
    if match := _LAYER_TENSOR.fullmatch(name):
        layer, role, kind = match.groups()
        return None if role in _COMPUTED else f"model.layers.{layer}.{_TENSORS.get(role, role)}.{kind}"
    role, _, kind = name.rpartition(".")
    return None if role in _COMPUTED else f"{_TENSORS.get(role, f'model.{role}')}.{kind}"


def _config(
    file: GGUFFile, prefix: str, architecture: _Architecture, stored: Mapping[str, GGUFTensor]
) -> dict[str, Any]:
    metadata = file.metadata

    def value(key: str) -> Any:
        return metadata.get(f"{prefix}.{key}")

    if value("expert_count"):
        raise ModelError(f"{file.path} is a mixture of {value('expert_count')} experts, which is not supported.")
    for key in (*_REQUIRED, *_OPTIONAL):
        number = value(key)
        if number is None and key in _OPTIONAL:
            continue
        if not isinstance(number, int | float) or number <= 0:
            raise ModelError(
                f"{file.path} needs one positive number as its metadata {prefix}.{key}, and has {number!r}."
            )
    if "token_embd.weight" not in stored:
        raise ModelError(
            f"{file.path} lacks the tensor token_embd.weight; it may hold a vocabulary or an adapter only."
        )
    config = {hf_key: value(key) for key, hf_key in _REQUIRED.items()}
    config |= {hf_key: value(key) for key, hf_key in _OPTIONAL.items() if value(key) is not None}
    window = value("attention.sliding_window")
    if window and prefix == "llama":  # Mistral goes by the name of Llama here
        architecture = _Architecture("MistralForCausalLM", permuted=True)
        config["sliding_window"] = window
    config["architectures"] = [architecture.hf_name]
    config["dtype"] = "bfloat16" if any(tensor.ggml_type == _BF16 for tensor in file.tensors) else "float16"
    config["vocab_size"] = stored["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in stored
    config["attention_bias"] = "blk.0.attn_q.bias" in stored
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in stored
    config["eos_token_id"] = metadata.get("tokenizer.ggml.eos_token_id")
    config["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["rope_parameters"] = _rotary(file, prefix, config["head_dim"], stored)
    return config


def _rotary(file: GGUFFile, prefix: str, head_size: int, stored: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    metadata = file.metadata
    kind = metadata.get(f"{prefix}.rope.scaling.type", "none")
    rotary: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind}
    for key, hf_key in _SCALING.items():
        if (value := metadata.get(f"{prefix}.{key}")) is not None:
            rotary[hf_key] = value
    size = metadata.get(f"{prefix}.rope.dimension_count", head_size)
    if not isinstance(size, int | float):
        raise ModelError(
            f"{file.path} needs one number as its metadata {prefix}.rope.dimension_count, and has {size!r}."
        )
    rotary["partial_rotary_factor"] = size / head_size
    if "rope_freqs.weight" in stored:
        rotary |= {"rope_type": "factors", "short_factor": _floats(stored["rope_freqs.weight"])}
    if "rope_factors_long.weight" in stored and "rope_factors_short.weight" in stored:
        rotary["rope_type"] = "longrope"
        rotary["short_factor"] = _floats(stored["rope_factors_short.weight"])
        rotary["long_factor"] = _floats(stored["rope_factors_long.weight"])
    return rotary


def _floats(tensor: GGUFTensor) -> list[float]:
    return [float(value) for value in _source(tensor.name, tensor, 0).read()]


def _source(name: str, tensor: GGUFTensor, permuted_heads: int) -> TensorSource:
    """The tensor under its new name; permuted_heads: heads whose rows are to be put back in order, 0 for none."""
    plain = _PLAIN.get(tensor.ggml_type)
    # A quantized vector is one packed row; of everything else the first axis can be told apart.
    rows = tensor.data.reshape((1 if plain is None and len(tensor.shape) == 1 else tensor.shape[0], -1))
    if permuted_heads:
        rows = _unpermute(rows, permuted_heads)
    if plain is None:
        return _QuantizedSource(name, tensor.shape, rows, tensor.ggml_type)
    # ascontiguousarray is free for a tensor whose rows were not moved: it stays a view of the file.
    return ArraySource(name, np.ascontiguousarray(rows).view(plain.numpy).reshape(tensor.shape))


class _QuantizedSource(TensorSource):
    """Rows in one of ggml's quantized formats, dequantized to float32 when read."""

    dtype = DType.FLOAT32

    def __init__(self, name: str, shape: tuple[int, ...], rows: np.ndarray[Any, Any], ggml_type: int) -> None:
        self.name, self.shape, self.rows, self.ggml_type = name, shape, rows, ggml_type

    def read(self) -> np.ndarray[Any, Any]:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        array: np.ndarray[Any, Any] = dequantize(self.rows, GGMLQuantizationType(self.ggml_type))
        return array.reshape(self.shape)

    def shard(self, rank: int, size: int) -> TensorSource:
        return ArraySource(self.name, self.read(), self.shard_axis).shard(rank, size)


def _check_types(file: GGUFFile) -> None:
    """Every type is one that NumPy has or that the gguf package can dequantize, which it only says when asked to."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    by_type = {tensor.ggml_type: tensor.name for tensor in file.tensors if tensor.ggml_type not in _PLAIN}
    for kind, name in ((GGMLQuantizationType(number), name) for number, name in by_type.items()):
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise ModelError(
                f"{file.path}: tensor {name} has the type {kind.name}, which the installed gguf "
                "package cannot dequantize."
            ) from None


def _unpermute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo the converter's reordering of each head's rows: pairs (2i, 2i + 1) back to (i, i + size / 2).

    A row is quantized by itself, so that whole rows can be moved while they are packed.
    """
    split = rows.reshape((heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]))
    return split.swapaxes(1, 2).reshape(rows.shape)
