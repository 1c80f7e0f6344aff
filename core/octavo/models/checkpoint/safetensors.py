"""Checkpoints in safetensors: `config.json` beside one file of weights, or several with an index.

The format is eight bytes of header length, a JSON header, and the tensors' bytes. The file is mapped and a
tensor is a view of the mapping (bfloat16 included, which the safetensors library does not give to NumPy), so
nothing is copied before the device takes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from octavo.backend.dtype import DType
from octavo.backend.weights import ArraySource, TensorSource
from octavo.errors import ModelError
from octavo.models.checkpoint.checkpoint import Checkpoint

_DTYPES = {
    "F32": DType.FLOAT32,
    "F16": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "F8_E4M3": DType.FLOAT8_E4M3,
    "F8_E5M2": DType.FLOAT8_E5M2,
    "I32": DType.INT32,
    "I8": DType.INT8,
    "U8": DType.UINT8,
}
_BUFFERS = (
    "I64",
    "I16",
    "U64",
    "U32",
    "U16",
    "BOOL",
)  # position ids and masks, which old checkpoints carry along
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


def open_safetensors(directory: Path) -> Checkpoint:
    """The checkpoint in a directory; only headers are read.

    Raises ModelError: no config, no weights, weights only in pickled formats, a shard missing, a file cut
    short or with a damaged header.
    """
    config = read_json(directory / "config.json")
    tensors: dict[str, TensorSource] = {}
    for file, expected in _shards(directory).items():
        found = dict(_read(directory / file))
        if missing := sorted(expected - found.keys()):
            raise ModelError(f"{directory / file} lacks the tensor {missing[0]}, which {_INDEX} places in it.")
        tensors.update(found)
    return Checkpoint(directory, config, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError where it is missing, unreadable or something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}, which says how to read the model.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.")
    return value


def _shards(directory: Path) -> dict[str, set[str]]:
    """The files that hold the weights, each with the tensors the index expects in it."""
    if (directory / _INDEX).is_file():
        return _indexed(directory)
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    if _SINGLE in files:
        return {_SINGLE: set()}
    if len(files) == 1:
        return {files[0]: set()}
    if files:
        raise ModelError(
            f"{directory} holds {len(files)} .safetensors files but no {_INDEX}, so which belong "
            "together is unknown; "
            "download the index too."
        )
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise ModelError(
            f"{directory} holds weights only as {pickled[0]}, a pickle, which can run code when it is "
            "loaded and is never "
            "opened here; load the model with transformers and write it again with "
            "save_pretrained(directory), which makes safetensors."
        )
    raise ModelError(f"{directory} holds no weights: no .safetensors file and no .gguf file.")


def _indexed(directory: Path) -> dict[str, set[str]]:
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{directory / _INDEX} has no weight_map.")
    shards: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        # A name with a path in it could point anywhere on this machine.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{directory / _INDEX} names {file!r}, which is no .safetensors file of this directory.")
        shards.setdefault(file, set()).add(tensor)
    for file in sorted(shards):
        if not (directory / file).is_file():
            raise ModelError(f"{directory} lacks the shard {file}, one of {len(shards)} that {_INDEX} names.")
    return shards


def _read(path: Path) -> Iterator[tuple[str, TensorSource]]:
    """Name and tensor of each entry of one file."""
    size = path.stat().st_size
    data = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if size < 8 or 8 + length > size:
        raise ModelError(f"{path} is cut short: it has {size} bytes and its header alone needs {8 + length}.")
    if length > _MAX_HEADER:
        raise ModelError(f"{path} is no safetensors file: its header claims {length} bytes.")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        entries = [(name, _entry(fields)) for name, fields in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"{path} has a damaged safetensors header; download the file again.") from None
    body = data[8 + length :]
    for name, (kind, shape, begin, end) in entries:
        if kind in _BUFFERS:
            continue
        if kind not in _DTYPES:
            raise ModelError(f"{path}: tensor {name} has the type {kind}, which is none of {', '.join(_DTYPES)}.")
        if end > body.size:
            raise ModelError(
                f"{path} is cut short: tensor {name} ends at byte {8 + length + end} and the file has "
                f"{size}; "
                "download it again."
            )
        dtype = _DTYPES[kind]
        if end - begin != prod(shape) * dtype.itemsize or begin < 0:
            raise ModelError(f"{path} has a damaged header: {name} {shape} of {kind} cannot take {end - begin} bytes.")
        yield name, ArraySource(name, _view(body[begin:end], dtype).reshape(shape))


def _entry(fields: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    begin, end = fields["data_offsets"]
    return str(fields["dtype"]), tuple(int(n) for n in fields["shape"]), int(begin), int(end)


def _view(data: np.ndarray[Any, np.dtype[np.uint8]], dtype: DType) -> np.ndarray[Any, Any]:
    # A base-class view: slices of np.memmap cost several times those of ndarray.
    return data.view(np.ndarray).view(dtype.numpy)
