"""The array libraries that the default operations are run on, as one fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from octavo.backend.tree import tree_map


@dataclass(frozen=True)
class Library:
    """An array library: `put` makes its arrays of a tree of NumPy arrays, `get` brings one back."""

    name: str
    array: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]

    def put(self, tree: Any) -> Any:
        return tree_map(self.array, tree)


def _to_torch(host: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    # The types of ml_dtypes are not known to torch.from_numpy; their bytes are.
    carrier = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8}.get(host.dtype.name)
    if carrier is None:
        return torch.from_numpy(host.copy())
    return torch.from_numpy(host.view(carrier).copy()).view(getattr(torch, host.dtype.name))


def _from_torch(tensor: Any) -> np.ndarray:
    bfloat16 = pytest.importorskip("torch").bfloat16
    return (tensor.float() if tensor.dtype is bfloat16 else tensor).numpy()


LIBRARIES = {
    "numpy": Library("numpy", np.array, np.asarray),
    "torch": Library("torch", _to_torch, _from_torch),
}


@pytest.fixture(scope="session", params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    """NumPy and torch in turn: both write in place, so every default runs on them."""
    return LIBRARIES[request.param]


@pytest.fixture(scope="session", params=[*LIBRARIES, "strict"])
def any_library(request: pytest.FixtureRequest) -> Library:
    """As `library`, and the array-API standard with nothing else: what a vendor's own arrays may be like."""
    if request.param != "strict":
        return LIBRARIES[request.param]
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    return Library("strict", strict.asarray, lambda array: np.asarray(array._array))
