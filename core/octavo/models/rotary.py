"""Cosines and sines of a rotary position embedding (Su et al. 2021) and its scalings.

Computed in float32 throughout, as transformers does: with angles in the thousands float64 would be more exact
and no longer what the models were trained with, and greedy tokens would differ from theirs.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from octavo.models.config import RotaryConfig, RotaryKind

Float32: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


def cos_sin_table(config: RotaryConfig, positions: int) -> Float32:
    """The table for positions 0 .. positions - 1: float32 [positions, size], cosines in the first half.

    positions is the longest context that will be served. LONGROPE takes its long factors when that is beyond
    the
    trained context, for all lengths alike: keys in the cache cannot be turned again when a sequence grows
        past it.
    DYNAMIC is plain rotary, for the same reason: it changes nothing within `DecoderConfig.max_position`,
    which bounds the context here.
    """
    frequencies, amplitude = _frequencies(config, positions)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies  # [positions, size / 2]
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return table * np.float32(amplitude)


def _frequencies(config: RotaryConfig, positions: int) -> tuple[Float32, float]:
    """Radians per position, float32 [size / 2], and what cosines and sines are multiplied with."""
    exponents = np.arange(0, config.size, 2, dtype=np.float32) / np.float32(config.size)
    periods = np.power(np.float32(config.theta), exponents)
    plain = np.float32(1.0) / periods
    match config.kind:
        case RotaryKind.LINEAR:
            return plain / np.float32(config.factor), 1.0
        case RotaryKind.LLAMA3:
            return _llama3(config, plain), 1.0
        case RotaryKind.YARN:
            return _yarn(config, periods), _yarn_amplitude(config)
        case RotaryKind.LONGROPE:
            long = positions > config.original_max_position
            factors = np.array(config.long_factors if long else config.short_factors, np.float32)
            return np.float32(1.0) / (factors * periods), _longrope_amplitude(config)
        case RotaryKind.FACTORS:
            return plain / np.array(config.short_factors, np.float32), 1.0
        case _:
            return plain, 1.0


def _llama3(config: RotaryConfig, plain: Float32) -> Float32:
    """Llama 3.1: wavelengths beyond the trained context are stretched, short ones kept, with a ramp between."""
    wavelengths = np.float32(2 * math.pi) / plain
    turns = np.float32(config.original_max_position) / wavelengths  # in the trained context
    ramp = (turns - np.float32(config.low_freq_factor)) / np.float32(config.high_freq_factor - config.low_freq_factor)
    stretched = plain / np.float32(config.factor)
    smooth = (1 - ramp) * stretched + ramp * plain
    result = np.where(
        turns < config.low_freq_factor, stretched, np.where(turns > config.high_freq_factor, plain, smooth)
    )
    return result.astype(np.float32)


def _yarn(config: RotaryConfig, periods: Float32) -> Float32:
    """YaRN: frequencies that turn often in the trained context are kept, rare ones interpolated."""

    def dimension(turns: float) -> float:
        span = math.log(config.original_max_position / (turns * 2 * math.pi))
        return config.size * span / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.size - 1)
    width = (high - low) or 0.001
    ramp = np.clip((np.arange(config.size // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    kept = np.float32(1.0) - ramp
    interpolated = np.float32(1.0) / (np.float32(config.factor) * periods)
    return np.asarray(interpolated * (1 - kept) + (np.float32(1.0) / periods) * kept, np.float32)


def _yarn_amplitude(config: RotaryConfig) -> float:
    def amplitude(scale: float) -> float:
        return 0.1 * scale * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return amplitude(config.mscale) / amplitude(config.mscale_all_dim)
    return amplitude(1.0)


def _longrope_amplitude(config: RotaryConfig) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    if config.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(config.factor) / math.log(config.original_max_position))
