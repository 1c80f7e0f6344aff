"""The container of GGUF (ggml's model file): typed metadata, a table of tensors, their bytes.

The `gguf` package has a reader too; it makes a NumPy array of each string of the vocabulary and takes seconds
where this one takes a tenth of a second, and start-up is something users wait for. The package's tables of
types are used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor as stored. shape: outermost axis first; ggml_type: a number of ggml's; data: uint8 bytes."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    data: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file, mapped. metadata: by key, arrays as lists; tensors: in the file's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's metadata and table of tensors; the tensors' bytes stay mapped.

    Raises ModelError: no such file, not GGUF, another version or byte order, cut short, a tensor type unknown
    to ggml.
    """
    from gguf.constants import GGML_QUANT_SIZES

    header = _Header(path)
    metadata, table = header.read()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ModelError(f"{path} is damaged: its alignment is {alignment!r}.")
    start = -(-header.position // alignment) * alignment
    data = np.frombuffer(header.data, np.uint8)
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    tensors = []
    for name, shape, kind, offset in table:
        if kind not in sizes:
            raise ModelError(
                f"{path}: tensor {name} has ggml type {kind}, which the installed gguf package does not know."
            )
        group, group_bytes = sizes[kind]
        if not shape or shape[-1] % group:
            raise ModelError(
                f"{path} is damaged: {name} of shape {list(shape)} does not divide into groups of {group}."
            )
        begin = start + offset
        end = begin + prod(shape) // group * group_bytes
        if end > data.size:
            raise ModelError(
                f"{path} is cut short: tensor {name} ends at byte {end} and the file has {data.size}; "
                "download it again."
            )
        tensors.append(GGUFTensor(name, shape, kind, data[begin:end]))
    return GGUFFile(path, metadata, tuple(tensors))


class _Header:
    """A cursor over the part of the file that is not tensor data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 4
        try:
            with path.open("rb") as file:
                self.data = mmap(file.fileno(), 0, access=ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"There is no file {path}.") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ModelError(f"{path} cannot be read: {error}.") from None
        if self.data[:4] != b"GGUF":
            raise ModelError(f"{path} is no GGUF file: it does not begin with the letters GGUF.")

    def read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
        """Metadata, and (name, shape, type, offset) of each tensor."""
        try:
            return self._read()
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
            raise ModelError(
                f"{self.path} is cut short or damaged: its header does not end within its "
                f"{len(self.data)} bytes; "
                "download it again."
            ) from None

    def _read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
        version = self._u32()
        if version not in _VERSIONS:
            raise ModelError(f"{self.path} is GGUF of version {version}; versions 2 and 3, little-endian, can be read.")
        tensor_count, metadata_count = self._u64(), self._u64()
        metadata = {}
        for _ in range(metadata_count):
            key = self._string()
            metadata[key] = self._value(self._u32())
        table = []
        for _ in range(tensor_count):
            name = self._string()
            axes = self._u32()
            shape = self._values("Q", axes)
            table.append((name, tuple(reversed(shape)), self._u32(), self._u64()))
        return metadata, table

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, count = self._u32(), self._u64()
            if kind == _STRING:
                return self._strings(count)
            return self._values(self._scalar(kind), count)
        return self._values(self._scalar(kind), 1)[0]

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ModelError(
                f"{self.path} is damaged: its metadata has a value of type {kind}, which GGUF does not define."
            )
        return _SCALARS[kind]

    def _u32(self) -> int:
        (value,) = _U32.unpack_from(self.data, self.position)
        self.position += 4
        return int(value)

    def _u64(self) -> int:
        (value,) = _U64.unpack_from(self.data, self.position)
        self.position += 8
        return int(value)

    def _string(self) -> str:
        return self._strings(1)[0]

    def _values(self, code: str, count: int) -> list[Any]:
        layout = struct.Struct(f"<{min(count, len(self.data))}{code}")  # a damaged count must not ask for the moon
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return list(values)

    def _strings(self, count: int) -> list[str]:
        # A vocabulary has a hundred thousand strings, so this loop is kept to the bare minimum.
        data, position, length_at = self.data, self.position, _U64.unpack_from
        strings = []
        for _ in range(count):
            (length,) = length_at(data, position)
            begin, position = position + 8, position + 8 + length
            strings.append(data[begin:position].decode())
            if position > len(data):
                raise struct.error
        self.position = position
        return strings
