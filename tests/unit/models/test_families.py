"""Logits of every supported family equal transformers', through the paged path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from octavo.models.config import DecoderConfig

TOKENS = np.random.default_rng(7).integers(0, 97, 41).tolist()

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def rope(kind: str, **parameters: object) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **parameters}


LLAMA3 = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CASES = {
    "llama": LlamaConfig(**TINY),
    "llama, one query head a KV head": LlamaConfig(**TINY | {"num_key_value_heads": 6}),
    "llama, one KV head": LlamaConfig(**TINY | {"num_key_value_heads": 1}),
    "llama, tied embeddings": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama, all biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "llama, heads wider than hidden": LlamaConfig(**TINY, head_dim=16),
    "llama, gelu": LlamaConfig(**TINY, hidden_act="gelu_pytorch_tanh"),
    "llama, llama3 rotary": LlamaConfig(**TINY, rope_parameters=LLAMA3),
    "llama, linear rotary": LlamaConfig(**TINY, rope_parameters=rope("linear")),
    "llama, dynamic rotary": LlamaConfig(**TINY, rope_parameters=rope("dynamic")),
    "llama, yarn rotary": LlamaConfig(
        **TINY, rope_parameters=rope("yarn", original_max_position_embeddings=16, beta_fast=4.0)
    ),
    "mistral, no window": MistralConfig(**TINY, sliding_window=None),
    "mistral, window of 7": MistralConfig(**TINY, sliding_window=7),
    "qwen2": Qwen2Config(**TINY),
    "qwen2, tied embeddings": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen2, window in the upper layers": Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
    "qwen3, window by layer types": Qwen3Config(
        **TINY,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


@pytest.fixture(params=CASES)
def case(request, make_hf_model, hf_logits, open_model, tmp_path):
    model = make_hf_model(CASES[request.param])
    model.save_pretrained(tmp_path)
    return open_model(tmp_path), hf_logits(model, TOKENS)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 0.5, "logits of a random model that is alive"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_prefill_gives_the_logits_of_transformers(case):
    model, expected = case
    assert_close(model.step([("a", TOKENS)])[0], expected)


def test_chunked_prefill_and_decode_give_the_logits_of_transformers(case):
    model, expected = case
    chunks = [TOKENS[:5], TOKENS[5:18], TOKENS[18:30], *([token] for token in TOKENS[30:])]
    ours = np.concatenate([model.step([("a", chunk)])[0] for chunk in chunks])
    assert_close(ours, expected)


def test_a_mixed_batch_gives_each_sequence_its_own_logits(make_hf_model, hf_logits, open_model, tmp_path):
    hf_model = make_hf_model(CASES["mistral, window of 7"])
    hf_model.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    other = TOKENS[::-1][:13]
    model.step([("a", TOKENS[:20])])
    decoded, prefilled = model.step([("a", TOKENS[20:21]), ("b", other)])
    assert_close(decoded[0], hf_logits(hf_model, TOKENS[:21])[-1])
    assert_close(prefilled, hf_logits(hf_model, other))


def test_the_window_is_felt_only_where_the_config_puts_it():
    rows = (
        ("none", "MistralForCausalLM", MistralConfig(**TINY, sliding_window=None)),
        ("all", "MistralForCausalLM", MistralConfig(**TINY, sliding_window=7)),
        ("off", "Qwen2ForCausalLM", Qwen2Config(**TINY, sliding_window=5, max_window_layers=1)),
        ("upper", "Qwen2ForCausalLM", CASES["qwen2, window in the upper layers"]),
        ("named", "Qwen3ForCausalLM", CASES["qwen3, window by layer types"]),
    )
    windows = {
        name: DecoderConfig.from_hf(config.to_dict() | {"architectures": [architecture]}).windows
        for name, architecture, config in rows
    }
    assert windows == {
        "none": (None, None, None),
        "all": (7, 7, 7),
        "off": (None, None, None),
        "upper": (None, 5, 5),
        "named": (6, None, 6),
    }


def test_bfloat16_weights_load_as_they_are(make_hf_model, hf_logits, open_model, tmp_path):
    make_hf_model(CASES["llama"]).to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(open_model(tmp_path).step([("a", TOKENS)])[0], hf_logits(model, TOKENS))


def test_a_sharded_checkpoint_gives_the_same_logits(make_hf_model, hf_logits, open_model, tmp_path):
    model = make_hf_model(CASES["llama"])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_close(open_model(tmp_path).step([("a", TOKENS)])[0], hf_logits(model, TOKENS))


def test_a_config_without_layer_types_counts_its_layers():
    fields = CASES["qwen2, window in the upper layers"].to_dict() | {"architectures": ["Qwen2ForCausalLM"]}
    del fields["layer_types"]
    assert DecoderConfig.from_hf(fields).windows == (None, 5, 5)
