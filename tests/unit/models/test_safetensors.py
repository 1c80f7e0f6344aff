"""Directories of safetensors: what is read, and what damaged ones get."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from octavo.backend import DType
from octavo.errors import ModelError
from octavo.models.checkpoint.safetensors import open_safetensors


@pytest.fixture
def sharded(make_hf_model, tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    make_hf_model(config).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


@pytest.fixture
def single(sharded, tmp_path_factory, make_hf_model):
    directory = tmp_path_factory.mktemp("single")
    shutil.copy(sharded / "config.json", directory)
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int32"]
)
def test_every_dtype_is_read_as_it_is_stored(single, dtype):
    values = torch.tensor([[0, 1, 2], [3, 4, 6]]).to(getattr(torch, dtype))
    save_file({"x": values}, single / "model.safetensors")
    source = open_safetensors(single).tensors["x"]
    assert (source.dtype, source.shape) == (DType(dtype), (2, 3))
    assert source.read().astype(np.float32).tolist() == [[0, 1, 2], [3, 4, 6]]


def test_a_tensor_is_a_view_of_the_file(single):
    array = open_safetensors(single).tensors["a"].read()
    assert array.base is not None
    assert not array.flags.writeable


def test_bfloat16_needs_no_torch(single):
    save_file({"x": torch.full((2,), 1.5, dtype=torch.bfloat16)}, single / "model.safetensors")
    assert open_safetensors(single).tensors["x"].read().dtype == ml_dtypes.bfloat16


def test_integer_buffers_of_old_checkpoints_are_passed_over(single):
    save_file({"position_ids": torch.arange(4), "x": torch.ones(1)}, single / "model.safetensors")
    assert list(open_safetensors(single).tensors) == ["x"]


def test_no_config(single):
    (single / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_safetensors(single)


def test_no_weights(single):
    (single / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        open_safetensors(single)


def test_pickled_weights_are_never_opened(single):
    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle, .* save_pretrained"):
        open_safetensors(single)


def test_a_missing_shard_is_named(sharded):
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ModelError, match=f"lacks the shard {victim.name}"):
        open_safetensors(sharded)


def test_shards_without_their_index(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"but no model\.safetensors\.index\.json"):
        open_safetensors(sharded)


def test_a_shard_that_lacks_a_tensor_of_the_index(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = sorted(set(content["weight_map"].values()))[0]
    content["weight_map"]["model.layers.9.ghost"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.9\.ghost"):
        open_safetensors(sharded)


@pytest.mark.parametrize("file", ["../../../etc/passwd", "/etc/hostname", "sub/model.safetensors", "model.bin", 7])
def test_an_index_cannot_name_a_file_elsewhere(single, file):
    (single / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ModelError, match=r"no \.safetensors file of this directory"):
        open_safetensors(single)


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_a_truncated_file_says_so(single, kept):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="is cut short"):
        open_safetensors(single)


@pytest.mark.parametrize("header", [b"{not json", b"[1, 2]", b'{"a": {"dtype": "F32"}}', b'{"a": 3}'])
def test_a_damaged_header_says_so(single, header):
    (single / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="damaged"):
        open_safetensors(single)


@pytest.mark.parametrize("offsets", [[0, 12], [-8, 8], [16, 0]])
def test_offsets_that_do_not_fit_the_shape_are_damage(single, offsets):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}).encode()
    (single / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ModelError, match="damaged"):
        open_safetensors(single)


def test_an_unknown_type_is_named(single):
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (single / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(ModelError, match="has the type F4"):
        open_safetensors(single)
