"""From a checkpoint's tensors to the decoder's weights on a device.

Which tensor plays which part, of which shape, split along which axis, is data: the tables of this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from math import gcd, prod

from octavo.backend.device import Device
from octavo.backend.dtype import DType
from octavo.backend.weights import (
    Array,
    ConcatenatedSource,
    DenseWeight,
    RotaryTable,
    TensorSource,
    Weight,
    WeightRole,
)
from octavo.errors import ModelError
from octavo.models.checkpoint import Checkpoint
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights, LayerWeights
from octavo.models.resolve import Progress
from octavo.models.rotary import cos_sin_table

_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_DECODER = ("model.", "lm_head.")
_COMPUTED = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")  # buffers of old checkpoints


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A linear layer, made of one or more of the checkpoint's, one above the other (a launch instead of
    several).

    rows: of each part. shard_axis 0 splits the outputs, 1 the inputs, whose partial sums the decoder then
        adds up.
    """

    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    shard_axis: int
    bias: bool


def _matrices(config: DecoderConfig) -> dict[str, _Matrix]:
    """A layer's linear layers, by their field of `LayerWeights`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.heads * config.head_size, config.kv_heads * config.head_size
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return {
        "qkv": _Matrix(projections, (q, kv, kv), hidden, 0, config.qkv_bias),
        "o": _Matrix(("self_attn.o_proj",), (hidden,), q, 1, config.o_bias),
        "gate_up": _Matrix(("mlp.gate_proj", "mlp.up_proj"), (inner, inner), hidden, 0, config.mlp_bias),
        "down": _Matrix(("mlp.down_proj",), (hidden,), inner, 1, config.mlp_bias),
    }


def _vectors(config: DecoderConfig) -> dict[str, tuple[str, int]]:
    """A layer's norms, by their field of `LayerWeights`: (name, length). Each shard holds them whole."""
    vectors = {
        "input_norm": ("input_layernorm", config.hidden_size),
        "post_norm": ("post_attention_layernorm", config.hidden_size),
    }
    if config.qk_norm:
        vectors["q_norm"] = ("self_attn.q_norm", config.head_size)
        vectors["k_norm"] = ("self_attn.k_norm", config.head_size)
    return vectors


def load_weights(
    config: DecoderConfig,
    checkpoint: Checkpoint,
    device: Device,
    dtype: DType,
    *,
    positions: int | None = None,
    progress: Progress | None = None,
) -> DecoderWeights:
    """Load a checkpoint onto a device in the compute dtype, fused and prepared for its ops.

    positions: rows of the rotary table, the longest context that will be served; None takes
        config.max_position.
    Raises ModelError for tensors that are missing, too many, or of another shape than the config says, before
    anything is loaded, and for a number of shards that the heads do not divide into; DeviceOutOfMemoryError.
    """
    _check_tensors(config, checkpoint)
    check_shards(config, device.collectives.size)
    loader = _Loader(checkpoint, device, dtype)
    tied = config.tied_embeddings
    embedding = loader.matrix([_EMBEDDING], None, WeightRole.TIED_EMBEDDING if tied else WeightRole.EMBEDDING)
    layers = []
    for index in range(config.layers):
        if progress is not None:
            progress("loading weights", index / config.layers)
        layers.append(_load_layer(config, loader, f"model.layers.{index}."))
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(layers),
        norm=loader.norm(_NORM),
        head=None if tied else loader.matrix([_HEAD], 0, WeightRole.LINEAR),
        rotary=RotaryTable(device.upload(cos_sin_table(config.rotary, positions or config.max_position))),
    )
    if progress is not None:
        progress("loading weights", 1.0)
    return weights


def parameter_count(config: DecoderConfig, shards: int = 1) -> int:
    """Parameters of the whole model, a tied embedding counted once; or of one of several shards.

    Each shard has its part of the linear layers and of an untied head, and everything else whole.
    """
    whole = sum(prod(shape) for _, shape in _expected(config))
    split = sum(
        sum(matrix.rows) * (matrix.columns + (matrix.bias and matrix.shard_axis == 0))
        for matrix in _matrices(config).values()
    )
    split = config.layers * split + (0 if config.tied_embeddings else config.vocab_size * config.hidden_size)
    return whole - split + split // shards


def _load_layer(config: DecoderConfig, loader: _Loader, prefix: str) -> LayerWeights:
    matrices, vectors = {}, {}
    for field, matrix in _matrices(config).items():
        weights = [f"{prefix}{part}.weight" for part in matrix.parts]
        biases = [f"{prefix}{part}.bias" for part in matrix.parts] if matrix.bias else []
        if matrix.shard_axis == 1 and biases:
            # Where the inputs are split the shards' results are summed: the bias is added once, to the sum.
            vectors[f"{field}_bias"] = loader.vector(biases[0])
            biases = []
        matrices[field] = loader.matrix(weights, matrix.shard_axis, WeightRole.LINEAR, biases)
    for field, (name, _) in _vectors(config).items():
        vectors[field] = loader.norm(f"{prefix}{name}.weight")
    return LayerWeights(**matrices, **vectors)


class _Loader:
    """Puts tensors of one checkpoint on one device."""

    def __init__(self, checkpoint: Checkpoint, device: Device, dtype: DType) -> None:
        self.tensors, self.device, self.dtype = checkpoint.tensors, device, dtype

    def norm(self, name: str) -> Array:
        """A norm's weight, whole on each shard, prepared for the device's ops."""
        return self.device.prepare(self.vector(name), WeightRole.NORM)

    def vector(self, name: str) -> Array:
        """A bias that is added to a sum of shards: whole on each shard."""
        return self._load([name], None)

    def matrix(
        self, names: list[str], shard_axis: int | None, role: WeightRole, biases: list[str] | None = None
    ) -> Weight:
        """One weight of the given tensors, prepared for the device's ops."""
        bias = self._load(biases, shard_axis) if biases else None
        return self.device.prepare(DenseWeight(self._load(names, shard_axis), bias), role)

    def _load(self, names: list[str], shard_axis: int | None) -> Array:
        parts = [self._sharded(name, shard_axis) for name in names]
        source = parts[0] if len(parts) == 1 else ConcatenatedSource("+".join(names), parts)
        return self.device.load(source, self.dtype)

    def _sharded(self, name: str, shard_axis: int | None) -> TensorSource:
        source = copy(self.tensors[name])
        source.shard_axis = shard_axis
        return source


def _expected(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor the config calls for."""
    yield _EMBEDDING, (config.vocab_size, config.hidden_size)
    for index in range(config.layers):
        prefix = f"model.layers.{index}."
        for name, length in _vectors(config).values():
            yield f"{prefix}{name}.weight", (length,)
        for matrix in _matrices(config).values():
            for part, rows in zip(matrix.parts, matrix.rows, strict=True):
                yield f"{prefix}{part}.weight", (rows, matrix.columns)
                if matrix.bias:
                    yield f"{prefix}{part}.bias", (rows,)
    yield _NORM, (config.hidden_size,)
    if not config.tied_embeddings:
        yield _HEAD, (config.vocab_size, config.hidden_size)


def _check_tensors(config: DecoderConfig, checkpoint: Checkpoint) -> None:
    expected = dict(_expected(config))
    model = f"({config.architecture}, {config.layers} layers)"
    if missing := [name for name in expected if name not in checkpoint.tensors]:
        raise ModelError(
            f"{checkpoint.path} lacks the tensor {_and_more(missing)}, which its config calls for {model}."
        )
    # A bias or a norm left out would go unnoticed but for the quality of the text. A tied head may be stored too.
    known = {*expected, _HEAD}
    decoder = (name for name in checkpoint.tensors if name.startswith(_DECODER) and not name.endswith(_COMPUTED))
    if surplus := sorted(name for name in decoder if name not in known):
        raise ModelError(
            f"{checkpoint.path} holds the tensor {_and_more(surplus)}, which its config does not call for {model}; "
            "without it the model would be another one."
        )
    for name, shape in expected.items():
        if (found := checkpoint.tensors[name].shape) != shape:
            raise ModelError(
                f"{checkpoint.path}: tensor {name} has the shape {list(found)} where its config calls "
                f"for {list(shape)}; "
                "the config and the weights do not belong together."
            )


def _and_more(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check_shards(config: DecoderConfig, size: int) -> None:
    """Raises ModelError where the model does not divide among so many shards, with what does not and the sizes that
    would do.
    """
    split = {
        f"{config.kv_heads} key/value heads": config.kv_heads,
        f"an inner size of {config.intermediate_size}": config.intermediate_size,
    }
    if not config.tied_embeddings:
        split[f"a vocabulary of {config.vocab_size}"] = config.vocab_size
    if uneven := [name for name, length in split.items() if length % size]:
        common = gcd(*split.values())
        fits = [str(number) for number in range(1, common + 1) if common % number == 0]
        raise ModelError(
            f"The model does not divide among {size} shards: it has {' and '.join(uneven)}. A tensor_parallel_size of "
            f"{' or '.join(fits)} would do."
        )
