"""The supported families: a family is a row of `FAMILIES`, which says where it departs from Llama."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from types import MappingProxyType
from typing import Any, TypeAlias

from octavo.backend.dtype import DType
from octavo.backend.weights import Activation
from octavo.errors import ModelError
from octavo.models.config import DecoderConfig, RotaryConfig, RotaryKind

Fields: TypeAlias = Mapping[str, Any]
Windows: TypeAlias = tuple[int | None, ...]
_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000  # a damaged file must not fill the memory


def decoder_config(fields: Fields) -> DecoderConfig:
    """The configuration that a checkpoint's `config.json` describes; see `DecoderConfig.from_hf`."""
    name, family = _family(fields)
    if method := _mapping(fields, "quantization_config").get("quant_method"):
        raise ModelError(
            f"The checkpoint is quantized with {method}, which is not supported; take one that is not "
            "quantized, or a GGUF."
        )
    hidden, heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
    kv_heads = _count(fields, "num_key_value_heads", default=heads)
    head_size = _count(fields, "head_dim", default=family.head_size or hidden // heads)
    layers, max_position = _count(fields, "num_hidden_layers"), _count(fields, "max_position_embeddings")
    if layers > _MOST_LAYERS:
        raise ModelError(f"The model's config claims {layers} layers, and {_MOST_LAYERS} is the most that is believed.")
    if heads % kv_heads:
        raise ModelError(f"The model's {heads} query heads do not divide among its {kv_heads} key/value heads.")
    attention_bias = bool(fields.get("attention_bias", False))
    return DecoderConfig(
        architecture=name,
        vocab_size=_count(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(fields, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        max_position=max_position,
        norm_eps=_float(fields, "rms_norm_eps", 1e-6),
        rotary=_rotary(fields, head_size, max_position),
        windows=family.windows(fields, layers),
        activation=_activation(fields),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=bool(fields.get("mlp_bias", False)) and family.mlp_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        dtype=_dtype(fields),
    )


def _no_windows(fields: Fields, layers: int) -> Windows:
    return (None,) * layers


def _one_window(fields: Fields, layers: int) -> Windows:
    # Mistral 7B's first configs leave the key out and mean the class's default; later ones say null.
    return (_window(fields),) * layers


def _upper_windows(fields: Fields, layers: int) -> Windows:
    """Qwen: off unless switched on, and then for the layers from max_window_layers on, or those layer_types names."""
    if not fields.get("use_sliding_window", False):
        return _no_windows(fields, layers)
    window, kinds = _window(fields), fields.get("layer_types")
    if kinds is None:
        first = _count(fields, "max_window_layers", default=28, least=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) < layers:
        raise ModelError(f"The model's config needs a list of {layers} kinds as layer_types, and has {kinds!r}.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])


def _window(fields: Fields) -> int | None:
    window = fields.get("sliding_window", 4096)
    return None if window is None else _count(fields, "sliding_window", default=4096)


@dataclass(frozen=True, slots=True)
class Family:
    """How a family departs from Llama. Biases: True or False where the architecture fixes them, None where
    config says.

    head_size: the family's own default, where it is not hidden_size / heads.
    """

    qkv_bias: bool | None = False
    o_bias: bool | None = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_size: int | None = None
    windows: Callable[[Fields, int], Windows] = _no_windows


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(qkv_bias=None, o_bias=None, mlp_bias=True),  # SmolLM, TinyLlama, Yi ... too
        "MistralForCausalLM": Family(windows=_one_window),
        "Qwen2ForCausalLM": Family(qkv_bias=True, windows=_upper_windows),
        "Qwen3ForCausalLM": Family(qkv_bias=None, o_bias=None, qk_norm=True, head_size=128, windows=_upper_windows),
    }
)


def _family(fields: Fields) -> tuple[str, Family]:
    names = fields.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"The model's config needs a list of names as architectures, and has {names!r}.")
    for name in names:
        if name in FAMILIES:
            return name, FAMILIES[name]
    asked = ", ".join(names) or fields.get("model_type") or "not named in its config"
    raise ModelError(
        f"The model's architecture is {asked}, which is not supported; supported are {', '.join(FAMILIES)}."
    )


def _count(fields: Fields, key: str, default: int | None = None, *, least: int = 1) -> int:
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ModelError(f"The model's config needs an integer from {least} to {_LARGEST} as {key}, and has {value!r}.")
    return value


def _float(fields: Fields, key: str, default: float, *, or_zero: bool = False) -> float:
    value = fields.get(key)
    value = default if value is None else value
    # The largest float bounds integers too, which JSON gives any number of digits; NaN fails every comparison.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value <= sys.float_info.max or (or_zero and value == 0)):
        raise ModelError(f"The model's config needs a positive number as {key}, and has {value!r}.")
    return float(value)


def _floats(fields: Fields, key: str) -> tuple[float, ...]:
    values = fields.get(key, [])
    if not isinstance(values, list):
        raise ModelError(f"The model's config needs a list of numbers as {key}, and has {values!r}.")
    return tuple(_float({key: value}, key, nan) for value in values)


def _mapping(fields: Fields, key: str) -> Fields:
    value = fields.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"The model's config needs an object as {key}, and has {value!r}.")
    return value


def _activation(fields: Fields) -> Activation:
    names = {
        "silu": Activation.SILU,
        "swish": Activation.SILU,
        "gelu": Activation.GELU,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
        "gelu_new": Activation.GELU_TANH,
        "relu": Activation.RELU,
    }
    name = fields.get("hidden_act") or "silu"
    if not isinstance(name, str) or name not in names:
        raise ModelError(
            f"The model's activation is {name!r}, which is not supported; supported are {', '.join(names)}."
        )
    return names[name]


def _dtype(fields: Fields) -> DType:
    name = fields.get("dtype") or fields.get("torch_dtype")
    try:
        return DType.FLOAT32 if name is None else DType(name)
    except ValueError:
        return DType.FLOAT32


def _rotary(fields: Fields, head_size: int, max_position: int) -> RotaryConfig:
    """From `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
    outside = {key: fields.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    inside = (_mapping(fields, "rope_scaling"), _mapping(fields, "rope_parameters"))
    # Some checkpoints keep the trained context outside too; transformers lets that one win.
    winning = {"original_max_position_embeddings": fields.get("original_max_position_embeddings")}
    parts = (outside, *inside, winning)
    scaling = {key: value for part in parts for key, value in part.items() if value is not None}
    name = str(scaling.get("rope_type", scaling.get("type", "default")))
    try:
        kind = RotaryKind.LONGROPE if name == "su" else RotaryKind(name)
    except ValueError:
        supported = ", ".join(kind.value for kind in RotaryKind)
        raise ModelError(
            f"The model's rotary scaling is {name!r}, which is not supported; supported are {supported}."
        ) from None
    original = _count(scaling, "original_max_position_embeddings", default=max_position)
    scaled = kind not in (RotaryKind.DEFAULT, RotaryKind.FACTORS)
    size = head_size * _float(scaling, "partial_rotary_factor", 1.0)
    if not 2 <= size <= head_size or int(size) % 2:
        raise ModelError(
            f"The model rotates {size:g} entries of each head, and rotary pairs need an even number of at "
            f"most {head_size}."
        )
    rotary = RotaryConfig(
        size=int(size),
        theta=_float(scaling, "rope_theta", 10000.0),
        kind=kind,
        factor=_float(scaling, "factor", max_position / original) if scaled else 1.0,
        original_max_position=original,
        attention_factor=_float(scaling, "attention_factor", 1.0) if "attention_factor" in scaling else None,
        low_freq_factor=_float(scaling, "low_freq_factor", 1.0),
        high_freq_factor=_float(scaling, "high_freq_factor", 4.0),
        beta_fast=_float(scaling, "beta_fast", 32.0),
        beta_slow=_float(scaling, "beta_slow", 1.0),
        mscale=_float(scaling, "mscale", 0.0, or_zero=True),
        mscale_all_dim=_float(scaling, "mscale_all_dim", 0.0, or_zero=True),
        truncate=bool(scaling.get("truncate", True)),
        short_factors=_floats(scaling, "short_factor"),
        long_factors=_floats(scaling, "long_factor"),
    )
    expected = {
        RotaryKind.LONGROPE: (rotary.short_factors, rotary.long_factors),
        RotaryKind.FACTORS: (rotary.short_factors,),
    }
    for factors in expected.get(kind, ()):
        if len(factors) != rotary.size // 2:
            raise ModelError(
                f"The model's {kind.value} scaling needs {rotary.size // 2} factors, and has {len(factors)}."
            )
    return rotary
