"""What a config.json may say, and the sentence that answers what it may not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.backend import Activation, DType
from octavo.errors import ModelError
from octavo.models.config import DecoderConfig
from octavo.models.families import FAMILIES

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
KEYS = [
    *MISTRAL_7B,
    *("dtype", "head_dim", "layer_types", "max_window_layers", "original_max_position_embeddings"),
    *("partial_rotary_factor", "quantization_config", "rope_parameters", "rope_scaling"),
]
QWEN = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}


def test_a_config_of_an_old_transformers_is_read():
    config = DecoderConfig.from_hf(MISTRAL_7B)
    assert (config.heads, config.kv_heads, config.head_size) == (32, 8, 128)
    assert config.windows == (4096,) * 32
    assert config.rotary.theta == 10000.0
    assert config.norm_eps == 1e-5
    assert config.activation is Activation.SILU
    assert config.dtype is DType.BFLOAT16
    assert not config.tied_embeddings


def test_an_unsupported_architecture_is_named_with_those_that_are_supported():
    with pytest.raises(ModelError, match="BertForMaskedLM") as error:
        DecoderConfig.from_hf(MISTRAL_7B | {"architectures": ["BertForMaskedLM"]})
    assert all(name in str(error.value) for name in FAMILIES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"hidden_size": None}, "hidden_size, and has None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers, and has 0"),
        ({"vocab_size": "many"}, "vocab_size, and has 'many'"),
        ({"num_key_value_heads": 5}, "32 query heads do not divide among its 5"),
        ({"hidden_act": "softplus"}, "'softplus', which is not supported"),
        ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, "'mrope', which is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "needs 64 factors, and has 0"),
        ({"head_dim": 33}, "rotates 33 entries"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized with awq"),
        ({"quantization_config": ["awq"]}, "an object as quantization_config, and has"),
        ({"rope_scaling": "linear"}, "an object as rope_scaling, and has 'linear'"),
        ({"rope_parameters": [1]}, "an object as rope_parameters"),
        ({"rope_scaling": {"type": "linear", "factor": "abc"}}, "number as factor, and has 'abc'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "number as factor, and has 0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": 2}}, "list of numbers as short_factor, and has 2"),
        ({"rope_scaling": {"type": "longrope", "short_factor": ["x"]}}, "number as short_factor, and has 'x'"),
        ({"rope_scaling": {"type": "yarn", "attention_factor": []}}, r"number as attention_factor, and has \[\]"),
        (
            {"rope_scaling": {"type": "linear", "original_max_position_embeddings": "x"}},
            "original_max_position_embeddings, and has 'x'",
        ),
        ({"rope_theta": float("inf")}, "number as rope_theta, and has inf"),
        ({"rope_theta": 10**400}, "number as rope_theta"),
        ({"partial_rotary_factor": {}}, "number as partial_rotary_factor"),
        ({"partial_rotary_factor": 1e308}, "rotates inf entries"),
        ({"max_position_embeddings": 10**400}, "to 2147483647 as max_position_embeddings"),
        ({"partial_rotary_factor": 2.0}, "rotates 256 entries"),
        ({"partial_rotary_factor": 1e-9}, "rotates 1.28e-07 entries"),
        ({"rms_norm_eps": "x"}, "number as rms_norm_eps, and has 'x'"),
        ({"rms_norm_eps": True}, "number as rms_norm_eps, and has True"),
        ({"hidden_act": ["silu"]}, r"activation is \['silu'\], which is not supported"),
        ({"architectures": "MistralForCausalLM"}, "list of names as architectures, and has 'MistralForCausalLM'"),
        ({"architectures": [["MistralForCausalLM"]]}, "list of names as architectures"),
        ({"sliding_window": "x"}, "sliding_window, and has 'x'"),
        ({"sliding_window": 0}, "sliding_window, and has 0"),
        (QWEN | {"sliding_window": "x"}, "sliding_window, and has 'x'"),
        (QWEN | {"max_window_layers": "x"}, "max_window_layers, and has 'x'"),
        (QWEN | {"layer_types": "sliding_attention"}, "list of 32 kinds as layer_types"),
        (QWEN | {"layer_types": ["sliding_attention"]}, "list of 32 kinds as layer_types"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(ModelError, match=sentence):
        DecoderConfig.from_hf(MISTRAL_7B | change)


def test_null_means_the_default():
    nothing = dict.fromkeys(("rms_norm_eps", "rope_theta", "rope_scaling", "quantization_config", "hidden_act"))
    config = DecoderConfig.from_hf(MISTRAL_7B | nothing)
    assert (config.norm_eps, config.rotary.theta) == (1e-6, 10000.0)
    assert config.activation is Activation.SILU


def test_a_window_may_cover_every_layer():
    assert DecoderConfig.from_hf(MISTRAL_7B | QWEN | {"max_window_layers": 0}).windows == (4096,) * 32


DAMAGED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "factor"]), inner),
    max_leaves=3,
)


@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from(KEYS), DAMAGED, min_size=1, max_size=2))
def test_a_damaged_config_is_read_or_refused_with_a_sentence(architecture, damage):
    with contextlib.suppress(ModelError):
        DecoderConfig.from_hf(MISTRAL_7B | QWEN | {"architectures": [architecture]} | damage)
