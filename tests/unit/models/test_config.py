"""What a config.json may say, and the sentence that answers what it may not."""

from __future__ import annotations

import pytest

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
    ],
)
def test_what_cannot_be_run_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(ModelError, match=sentence):
        DecoderConfig.from_hf(MISTRAL_7B | change)
