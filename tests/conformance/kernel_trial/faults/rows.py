"""Operations on rows: norms, activations, the largest entries."""

from __future__ import annotations

from kernel_trial.fault import KernelFault

ROWS: tuple[KernelFault, ...] = (
    KernelFault(
        "norm-without-residual",
        "The sum with the residual is stored, but what is normed is x alone.",
        "rms_norm",
        "rms_norm.py",
        "        value = value.to(tl.float32)\n",
        "        value = tl.load(x + token * x_token + head * x_head + column, mask=inside, other=0.0)\n"
        "        value = value.to(tl.float32)\n",
        near="residual",
    ),
    KernelFault(
        "mean-of-padded-row",
        "The mean of squares is taken over the power of two that the row is padded to.",
        "rms_norm",
        "rms_norm.py",
        "tl.sum(value * value, 1) / SIZE",
        "tl.sum(value * value, 1) / COLUMNS",
    ),
    KernelFault(
        "wrong-half-of-the-gate",
        "The activation is applied to the second half.",
        "gated_activation",
        "gated_activation.py",
        "activated(gate, KIND) * up, ",
        "activated(up, KIND) * gate, ",
    ),
    KernelFault(
        "gelu-cubed-term",
        "The cubic term of the tanh approximation is a square.",
        "gated_activation",
        "gated_activation.py",
        "0.044715 * x * x * x",
        "0.044715 * x * x",
    ),
    KernelFault(
        "ties-by-highest-index",
        "Of equal entries the last comes first.",
        "top_k",
        "top_k.py",
        "place = tl.where(there, 0x7FFFFFFF - index, 0)\n"
        "    keys = (rising.to(tl.int64) << 32) | place.to(tl.int64)  # fall as the candidates should stand\n"
        "    return 0x7FFFFFFF - (_largest(keys, LOG_K) & 0x7FFFFFFF).to(tl.int32)",
        "place = tl.where(there, index, 0)\n"
        "    keys = (rising.to(tl.int64) << 32) | place.to(tl.int64)\n"
        "    return (_largest(keys, LOG_K) & 0x7FFFFFFF).to(tl.int32)",
    ),
    KernelFault(
        "negative-upside-down",
        "Negative entries are ordered by their size.",
        "top_k",
        "top_k.py",
        "rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)",
        "rising = bits",
    ),
    KernelFault(
        "negative-zero-below-zero",
        "-0.0 stands behind 0.0, which it is equal to.",
        "top_k",
        "top_k.py",
        "tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)",
        "value.to(tl.int32, bitcast=True)",
    ),
    KernelFault(
        "parts-not-rescaled",
        "The sums of a row's parts are added as if each part had the same largest entry.",
        "probability_units",
        "probability_units.py",
        "other=0.0) * _weight(largest, peak, steepness), 0)",
        "other=0.0), 0)",
        near="normal,rows=3,n=50257",
    ),
)
