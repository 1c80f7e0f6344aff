"""The decoder's configuration, normalised: what the model is, whatever dialect its checkpoint describes it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from octavo.backend.dtype import DType
from octavo.backend.weights import Activation


class RotaryKind(str, Enum):
    """How a rotary embedding is stretched beyond the context it was trained on."""

    DEFAULT = "default"
    LINEAR = "linear"  # positions divided by a factor (kaiokendev, Chen et al. 2023)
    DYNAMIC = "dynamic"  # NTK-aware, from the first position beyond the trained context on
    LLAMA3 = "llama3"  # low frequencies divided, high ones kept, smooth between
    YARN = "yarn"  # Peng et al. 2023
    LONGROPE = "longrope"  # a factor per frequency (Ding et al. 2024)
    FACTORS = "factors"  # a divisor per frequency, as GGUF files carry Llama 3's scaling


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """Rotary position embedding.

    size: entries of a head that are rotated, the first ones; even.
    theta: base of the frequencies. original_max_position: the trained context, for kinds that refer to it.
    attention_factor: multiplies cosines and sines; None takes the kind's own rule (YaRN, LongRoPE).
    short_factors, long_factors: [size / 2] each, for LONGROPE; FACTORS uses short_factors.
    """

    size: int
    theta: float
    kind: RotaryKind = RotaryKind.DEFAULT
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only transformer with pre-norm, gated feed-forward layers and rotary positions.

    architecture: the class name its checkpoint gives. max_position: the longest context, in tokens.
    windows: per layer, the tokens a position attends to, itself included, or None for all.
    qkv_bias, o_bias, mlp_bias: which linear layers carry a bias. qk_norm: an RMS norm on each query and key
        head.
    dtype: that the checkpoint was made for.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    max_position: int
    norm_eps: float
    rotary: RotaryConfig
    windows: tuple[int | None, ...]
    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    dtype: DType = DType.FLOAT32

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied with."""
        return float(self.head_size**-0.5)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """From a Hugging Face `config.json`, in the dialect of any version of transformers.

        Raises ModelError for an architecture, activation, quantization or rotary scaling that is not
        supported, and for values that are missing or do not fit together.
        """
        from octavo.models.families import decoder_config

        return decoder_config(config)
