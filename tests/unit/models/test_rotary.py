"""The rotary table equals transformers' for every kind of scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from octavo.models.config import DecoderConfig, RotaryConfig, RotaryKind
from octavo.models.rotary import cos_sin_table

POSITIONS = 512

KINDS = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, every option": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, amplitude given": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "short_factor": np.linspace(1.0, 1.5, 16).tolist(),
        "long_factor": np.linspace(1.0, 4.0, 16).tolist(),
    },
}


def config(rope_parameters: dict[str, object]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        rope_parameters=rope_parameters,
        architectures=["LlamaForCausalLM"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_that_of_transformers(kind):
    hf_config = config(dict(KINDS[kind]))
    cos, sin = LlamaRotaryEmbedding(hf_config)(torch.zeros(1), torch.arange(POSITIONS)[None])
    table = cos_sin_table(DecoderConfig.from_hf(hf_config.to_dict()).rotary, POSITIONS)
    assert table.dtype == np.float32
    expected = np.concatenate([cos[0, :, :16].numpy(), sin[0, :, :16].numpy()], axis=1)
    # One unit in the last place of a frequency is 6e-8 of the angle, which goes up to the number of positions.
    np.testing.assert_allclose(table, expected, rtol=0, atol=1.2e-7 * POSITIONS)


def test_longrope_keeps_the_short_factors_for_a_context_within_the_trained_one():
    rotary = DecoderConfig.from_hf(config(dict(KINDS["longrope"])).to_dict()).rotary
    short, long = cos_sin_table(rotary, 128), cos_sin_table(rotary, 129)
    plain = RotaryConfig(rotary.size, rotary.theta, RotaryKind.FACTORS, short_factors=rotary.short_factors)
    amplitude = short[0, 0]
    np.testing.assert_allclose(short, cos_sin_table(plain, 128) * amplitude, rtol=0, atol=1e-4)
    assert np.abs(long[:128] - short).max() > 0.1


def test_old_and_new_config_dialects_mean_the_same():
    new = config(dict(KINDS["llama3"])).to_dict()
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in KINDS["llama3"].items() if key not in ("rope_theta", "rope_type")}
    old |= {"rope_theta": 5e5, "rope_scaling": scaling | {"type": "llama3"}}
    assert DecoderConfig.from_hf(old).rotary == DecoderConfig.from_hf(new).rotary
