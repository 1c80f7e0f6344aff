"""Sampling: parameters, counter-based noise, and the sampler, on any array library."""

from octavo.sampling.batch import RowSpec, SequenceSampling, build_inputs
from octavo.sampling.inputs import SamplerFeatures, SamplerOutputs, SamplingInputs, Truncation
from octavo.sampling.params import SamplingParams
from octavo.sampling.random import derive_seed
from octavo.sampling.sampler import sample

__all__ = [
    "RowSpec",
    "SamplerFeatures",
    "SamplerOutputs",
    "SamplingInputs",
    "SamplingParams",
    "SequenceSampling",
    "Truncation",
    "build_inputs",
    "derive_seed",
    "sample",
]
