"""GGUF files: every type, llama.cpp's names and row order, and what damaged files get."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from octavo.errors import ModelError
from octavo.models.checkpoint.gguf import open_gguf
from octavo.models.checkpoint.gguf_file import read_gguf
from octavo.models.config import DecoderConfig, RotaryKind

TOKENS = np.random.default_rng(3).integers(0, 64, 23).tolist()
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 32,
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, role = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[role]}.{kind}"


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of a Llama."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_header(path, architecture: str, config) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    return writer


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path, architecture: str, model, kind: GGMLQuantizationType, more=None) -> None:
    """The model as llama.cpp's converter writes it, and `more` tensors; it takes the quantized values itself."""
    writer = write_header(path, architecture, model.config)
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            array = parameter.numpy()
            stored = kind if array.ndim == 2 else GGMLQuantizationType.F32
            data = quants.quantize(array, stored)
            parameter.copy_(torch.from_numpy(quants.dequantize(data, stored).copy()))
            heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
            role = name.split(".")[-2]
            if architecture == "llama" and role in heads:
                data = permute(data, heads[role])
            if not (tied and name.startswith("lm_head")):
                writer.add_tensor(gguf_name(name), np.ascontiguousarray(data), raw_dtype=stored)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    finish(writer)


MODELS = {
    "llama": LlamaConfig(**TINY),
    "llama, tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama, biases": LlamaConfig(**TINY, attention_bias=True),
    "llama, biases of the feed-forward layers too": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**TINY),
    "qwen3": Qwen3Config(**TINY),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_the_logits_of_transformers(name, make_hf_model, hf_logits, open_model, tmp_path):
    model = make_hf_model(MODELS[name])
    write_model(tmp_path / "model.gguf", name.split(",")[0], model, GGMLQuantizationType.F32)
    expected = hf_logits(model, TOKENS)
    ours = open_model(tmp_path / "model.gguf").step([("a", TOKENS)])[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["blk.0.attn_sub_norm.weight", "blk.0.attn_q.scale", "output.bias"])
def test_a_tensor_that_no_decoder_here_has_is_refused_not_dropped(name, make_hf_model, open_model, tmp_path):
    model = make_hf_model(MODELS["llama"])
    write_model(tmp_path / "x.gguf", "llama", model, GGMLQuantizationType.F32, {name: np.ones(64, np.float32)})
    with pytest.raises(ModelError, match="which its config does not call for"):
        open_model(tmp_path / "x.gguf")


QUANTIZABLE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_quantized_models_give_the_logits_of_their_dequantized_weights(
    kind, make_hf_model, hf_logits, open_model, tmp_path
):
    model = make_hf_model(MODELS["llama"])
    write_model(tmp_path / "model.gguf", "llama", model, GGMLQuantizationType[kind])
    expected = hf_logits(model, TOKENS)
    ours = open_model(tmp_path / "model.gguf").step([("a", TOKENS)])[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


BLOCKS_ONLY = [
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
]


@pytest.mark.parametrize("kind", BLOCKS_ONLY)
def test_types_that_can_only_be_dequantized_are_read_row_by_row(kind, tmp_path):
    kind = GGMLQuantizationType[kind]
    config = LlamaConfig(**TINY | {"hidden_size": 512, "head_dim": 128})
    row_bytes = 512 // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(0)
    embedding = rng.integers(0, 128, (64, row_bytes)).astype(np.uint8)
    q = rng.integers(0, 128, (512, row_bytes)).astype(np.uint8)
    writer = write_header(tmp_path / "x.gguf", "llama", config)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=kind)
    writer.add_tensor("blk.0.attn_q.weight", permute(q, 4), raw_dtype=kind)
    finish(writer)
    tensors = open_gguf(tmp_path / "x.gguf").tensors
    with warnings.catch_warnings():  # random scales overflow
        warnings.simplefilter("ignore")
        for name, data in (
            ("model.embed_tokens.weight", embedding),
            ("model.layers.0.self_attn.q_proj.weight", q),
        ):
            expected = np.stack([quants.dequantize(row[None], kind)[0] for row in data])
            assert tensors[name].shape == expected.shape == (len(data), 512)
            np.testing.assert_array_equal(tensors[name].read(), expected)


def test_the_demo_gives_the_logits_of_transformers(demo_files, hf_logits, open_model):
    with warnings.catch_warnings():  # transformers dequantizes from a read-only mapping
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            demo_files.path.parent, gguf_file=demo_files.path.name, dtype=torch.float32
        ).eval()
    tokens = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    expected = hf_logits(model, tokens)
    ours = open_model("demo").step([("a", tokens)])[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert (ours.argmax(-1) == expected.argmax(-1)).all()


# --------------------------------------------------------------------------------------------------- metadata


def minimal(path, architecture="llama", config=None, tensors=("token_embd.weight",), **metadata):
    writer = write_header(path, architecture, config or LlamaConfig(**TINY))
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    for name in tensors:
        writer.add_tensor(
            name, np.ones((64, 64), np.float32) if name.startswith("token") else np.full(16, 2, np.float32)
        )
    finish(writer)
    return path


def test_scalings_are_read_from_metadata_and_from_factor_tensors(tmp_path):
    linear = minimal(tmp_path / "a.gguf", rope__scaling__type="linear", rope__scaling__factor=4.0)
    rotary = DecoderConfig.from_hf(open_gguf(linear).config).rotary
    assert (rotary.kind, rotary.factor) == (RotaryKind.LINEAR, 4.0)
    llama3 = minimal(tmp_path / "b.gguf", tensors=("token_embd.weight", "rope_freqs.weight"))
    rotary = DecoderConfig.from_hf(open_gguf(llama3).config).rotary
    assert (rotary.kind, rotary.short_factors) == (RotaryKind.FACTORS, (2.0,) * 16)


def test_a_part_of_each_head_that_is_no_number_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"llama\.rope\.dimension_count, and has 'all'"):
        open_gguf(minimal(tmp_path / "x.gguf", rope__dimension_count="all"))


def test_an_unsupported_architecture_is_named(tmp_path):
    with pytest.raises(ModelError, match="'mamba', which is not supported; supported are llama, qwen2, qwen3"):
        open_gguf(minimal(tmp_path / "x.gguf", "mamba"))


def test_a_file_without_a_model_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"lacks the tensor token_embd\.weight"):
        open_gguf(minimal(tmp_path / "x.gguf", tensors=()))


# ---------------------------------------------------------------------------------------------- damaged files


def test_a_file_cut_at_any_byte_says_so(tmp_path):
    path = minimal(tmp_path / "whole.gguf")
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    header = len(whole) - 64 * 64 * 4
    for length in [*range(1, header, 7), *range(header, len(whole), 997)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut short|no GGUF file"):
            open_gguf(cut)


def test_a_flipped_byte_in_the_header_never_gets_past_as_another_error(tmp_path):
    path = minimal(tmp_path / "whole.gguf")
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for position in range(len(whole) - 64 * 64 * 4):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            DecoderConfig.from_hf(open_gguf(damaged).config)
        except ModelError:
            continue


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(100)])
def test_another_kind_of_file_says_so(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"no GGUF file|cannot be read"):
        read_gguf(tmp_path / "x.gguf")


def test_another_version_says_so(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(ModelError, match="version 1"):
        read_gguf(tmp_path / "x.gguf")


def test_the_demo_cut_short_says_so(demo_files, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(demo_files.path.read_bytes()[: 20 << 20])
    with pytest.raises(ModelError, match=r"is cut short: tensor .* download it again"):
        open_gguf(tmp_path / "cut.gguf")
