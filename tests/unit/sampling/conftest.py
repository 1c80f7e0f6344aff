"""The sampler runs on every array library at hand; each is a way up, a way down, and its operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend.ops import Ops
from octavo.backend.tree import tree_map
from octavo.sampling import SamplerFeatures, SamplerOutputs, SamplingInputs, sample

try:
    import jax
except ImportError:  # the XLA backend's library; the core needs none of them
    jax = None


class TorchOps(Ops):
    def scatter_add(self, x: Any, ids: Any, values: Any) -> Any:
        return x.scatter_add(1, ids.to(torch.int64), values)


class JaxOps(Ops):
    def scatter_add(self, x: Any, ids: Any, values: Any) -> Any:
        return x.at[jax.numpy.arange(x.shape[0])[:, None], ids].add(values)


@dataclass(frozen=True)
class Library:
    name: str
    upload: Callable[[np.ndarray], Any]
    ops: Ops

    def sample(self, logits: np.ndarray, inputs: SamplingInputs, features: SamplerFeatures) -> SamplerOutputs:
        """`octavo.sampling.sample` on this library, NumPy in and out."""
        arrays = tree_map(self.upload, inputs)
        if self.name == "jax":
            given = [name for name in SamplingInputs.__slots__ if getattr(inputs, name) is not None]

            def step(x: Any, *values: Any) -> list[Any]:
                outputs = sample(self.ops, x, SamplingInputs(**dict(zip(given, values, strict=True))), features)
                return [getattr(outputs, name) for name in SamplerOutputs.__slots__]

            values = jax.jit(step)(self.upload(logits), *(getattr(arrays, name) for name in given))
            outputs = SamplerOutputs(*values)
        else:
            outputs = sample(self.ops, self.upload(logits), arrays, features)
        return tree_map(np.asarray, outputs)


NUMPY = Library("numpy", lambda host: host, Ops())
TORCH = Library("torch", lambda host: torch.from_numpy(host.copy()), TorchOps())
LIBRARIES = [NUMPY, TORCH]
if jax is not None:
    LIBRARIES.append(Library("jax", jax.numpy.asarray, JaxOps()))


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    return request.param
