"""Counter-based noise: a function of (seed, position, vocabulary id) and of nothing else.

There is no generator and no state, so a draw cannot depend on the batch, the step, the chunking of a prompt
or a preemption (the idea is Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; the mixing
function is the finaliser of MurmurHash3). Everything is int32 with wrap-around and masked shifts, which
NumPy, PyTorch and JAX compute alike: the uniforms are bit-identical everywhere.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from array_api_compat import array_namespace

Array = Any

# A float32 holds the 23-bit midpoints (i + 0.5) / 2^23 exactly; with 24 bits the largest would round to 1.0.
UNIFORM_BITS = 23


def derive_seed(seed: int, *path: int) -> int:
    """An int32 seed for one branch of a seed: `derive_seed(request_seed, sequence_index)`.

    Takes integers of any size and sign. Different paths give unrelated seeds, with the collisions of 32 bits;
    an engine gives a request without a seed `derive_seed(engine_seed, request_number)`.
    """
    label = ",".join(str(number) for number in (seed, *path))
    return int.from_bytes(blake2b(label.encode(), digest_size=4).digest(), "little", signed=True)


def random_bits(seeds: Array, positions: Array, ids: Array) -> Array:
    """32 random bits for each (seed, position, id).

    seeds, positions int32 [rows]; ids int32 [n] or [rows, n]; any value, negative ones included -> int32
    [rows, n].
    """
    key = _mix(positions * _signed(0x9E3779B1) + _mix(seeds))
    return _mix(((ids * _signed(0x9E3779B1)) ^ key[:, None]) + _signed(0x7F4A7C15))


def uniform(seeds: Array, positions: Array, ids: Array) -> Array:
    """Uniform float32 [rows, n] strictly between 0 and 1: the midpoints of 2^23 equal intervals. See
    `random_bits`.
    """
    bits = random_bits(seeds, positions, ids)
    xp = array_namespace(bits)
    return (xp.astype(_shift_right(bits, 32 - UNIFORM_BITS), xp.float32) + 0.5) * 2.0**-UNIFORM_BITS


def exponential(seeds: Array, positions: Array, ids: Array) -> Array:
    """Exponential float32 [rows, n] of rate 1, in [2^-24, 16.64]: never 0, inf or NaN. See `random_bits`.

    The token with the largest weight / exponential is a draw in proportion to the weights: this is the
    Gumbel-max trick with one logarithm less, since -log(exponential) is the Gumbel variate. `log1p` keeps the
    relative precision of the small values, which decide the draws. Libraries differ in its last bit;
    `octavo.sampling.sampler` says how often that changes a draw.
    """
    noise = uniform(seeds, positions, ids)
    return -array_namespace(noise).log1p(-noise)


def _mix(h: Array) -> Array:
    h = h ^ _shift_right(h, 16)
    h = h * _signed(0x85EBCA6B)
    h = h ^ _shift_right(h, 13)
    h = h * _signed(0xC2B2AE35)
    return h ^ _shift_right(h, 16)


def _shift_right(x: Array, bits: int) -> Array:
    # int32 shifts copy the sign bit down; the mask makes them logical.
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 32) if constant >= 1 << 31 else constant
