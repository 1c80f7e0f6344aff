"""Arrays between host and device, tensors of a checkpoint, and weights made ready for the operations."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np

from octavo.backend import Array, ArraySource, ConcatenatedSource, DenseWeight, DType, Weight, WeightRole
from octavo_conformance.case import Case, Needs
from octavo_conformance.workbench import PRECISE, Workbench

_ALWAYS = (DType.FLOAT32, DType.INT32, DType.UINT8)
"""Dtypes of the sampler's arrays, of step inputs and of quantized codes: every device moves them."""

_SHAPES: tuple[tuple[int, ...], ...] = ((1,), (7,), (64,), (3, 5), (1, 1), (2, 3, 4), (1, 5, 1, 3), (2, 1, 8, 16))

_ON_DISK = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2)


def cases() -> Iterator[Case]:
    for dtype in (*_ALWAYS, DType.FLOAT16, DType.BFLOAT16):
        needs = Needs() if dtype in _ALWAYS else Needs(dtypes=(dtype,))
        yield Case(f"contract/arrays/round_trip/{dtype.value}", partial(_round_trip, dtype), needs, quick=True)
    yield Case("contract/arrays/strided_and_read_only", _strided_and_read_only, quick=True)
    yield Case("contract/arrays/downloads_stay", _downloads_stay, quick=True)
    for target in PRECISE:
        needs = Needs(dtypes=(target,))
        for source in _ON_DISK:
            run = partial(_converts, source, target)
            yield Case(f"contract/load/{source.value}_to_{target.value}", run, needs, quick=True)
        yield Case(f"contract/load/concatenated/{target.value}", partial(_concatenated, target), needs, quick=True)
    yield Case("contract/load/codes", _codes, quick=True)
    yield Case("contract/load/mapped_file", _mapped_file, quick=True)
    yield Case("contract/load/source_untouched", _source_untouched, quick=True)
    for role in (WeightRole.LINEAR, WeightRole.TIED_EMBEDDING):
        yield Case(f"contract/prepare/{role.value}", partial(_prepared_linear, role), quick=True)
    for role in (WeightRole.EMBEDDING, WeightRole.TIED_EMBEDDING):
        yield Case(f"contract/prepare/lookup/{role.value}", partial(_prepared_embedding, role), quick=True)
    yield Case("contract/prepare/norm", _prepared_norm, quick=True)
    yield Case("contract/prepare/other", _prepared_other, quick=True)
    yield Case("contract/prepare/one_after_another", _one_after_another, quick=True)


# --------------------------------------------------------------------------------------------------- there and back


def _round_trip(dtype: DType, bench: Workbench) -> None:
    for shape in _SHAPES:
        host = _any_bits(bench, dtype, shape)
        came = bench.device.download(bench.device.upload(host.copy()))
        bench.check_form("upload and download", came, shape, dtype, f"shape {shape}")
        _same_bits(bench, came, host, f"of shape {shape}")


def _strided_and_read_only(bench: Workbench) -> None:
    whole = bench.rng.integers(-(2**31), 2**31, (6, 8, 10)).astype(np.int32)
    locked = whole.copy()
    locked.flags.writeable = False
    views = {
        "transposed": whole.T,
        "every second entry": whole[:, ::2, ::3],
        "reversed": whole[::-1],
        "one reversed row": whole[:1][::-1],
        "from an offset": whole[3:, 1:, 2:],
        "broadcast": np.broadcast_to(whole[0, 0], (4, 10)),
        "read-only": locked,
        "a read-only slice": locked[1:3, ::2],
    }
    for name, view in views.items():
        expected = view.copy()
        came = bench.device.download(bench.device.upload(view))
        bench.check_equal("upload and download", came, expected, f"the host array is {name}")


def _downloads_stay(bench: Workbench) -> None:
    """What was downloaded is the caller's: later transfers and operations do not write into it."""
    device, dtype = bench.device, bench.dtype.numpy
    first, second = (bench.rng.standard_normal((16, 64)).astype(dtype) for _ in range(2))
    weight = device.prepare(device.upload(np.ones(64, dtype)), WeightRole.NORM)
    up = device.upload(first.copy())
    came = device.download(up)
    normed, total = device.ops.rms_norm(up, weight, 1e-5)
    kept = [device.download(normed), device.download(total)]
    before = [array.copy() for array in kept]
    for _ in range(2):
        again, sums = device.ops.rms_norm(device.upload(second.copy()), weight, 1e-5)
        device.download(again), device.download(sums)
    _same_bits(bench, came, first, "downloaded before other work")
    for array, expected in zip(kept, before, strict=True):
        _same_bits(bench, array, expected, "downloaded from rms_norm before it ran again")


# ------------------------------------------------------------------------------------------------------ checkpoints


def _converts(source: DType, target: DType, bench: Workbench) -> None:
    host = _on_disk(bench, source, (37, 24))
    expected = host.astype(np.float32).astype(target.numpy)  # to nearest, ties to even
    for shape in ((37, 24), (37 * 24,)):
        tensor = ArraySource("model.weight", host.reshape(shape))
        came = bench.device.download(bench.device.load(tensor, target))
        note = f"a {source.value} tensor of shape {shape}; conversion rounds to nearest, ties to even"
        bench.check_equal("load", came, expected.reshape(shape), note)


def _concatenated(target: DType, bench: Workbench) -> None:
    """Fused projections: parts of different heights, and of the dtypes that a mixed checkpoint has."""
    for dtypes in ((DType.FLOAT32,) * 3, (DType.BFLOAT16, DType.FLOAT32, DType.FLOAT16)):
        parts = [_on_disk(bench, dtype, (rows, 16)) for dtype, rows in zip(dtypes, (8, 3, 3), strict=True)]
        tensor = ConcatenatedSource("qkv", [ArraySource(f"part{i}", part) for i, part in enumerate(parts)])
        expected = np.concatenate([part.astype(np.float32) for part in parts]).astype(target.numpy)
        nested = ConcatenatedSource("twice", [tensor, ArraySource("more", parts[0])])
        twice = np.concatenate([expected, expected[:8]])
        names = ", ".join(dtype.value for dtype in dtypes)
        for source, right in ((tensor, expected), (nested, twice)):
            came = bench.device.download(bench.device.load(source, target))
            bench.check_equal("load", came, right, f"{source.name}: parts of 8, 3 and 3 rows in {names}")


def _codes(bench: Workbench) -> None:
    """Quantized weights come as integers, which stay what they are."""
    for dtype in (DType.UINT8, DType.INT32):
        host = _any_bits(bench, dtype, (19, 8))
        came = bench.device.download(bench.device.load(ArraySource("codes", host), dtype))
        bench.check_equal("load", came, host, f"a tensor of {dtype.value}")


def _mapped_file(bench: Workbench) -> None:
    """A checkpoint is mapped, read, and may be replaced on disk while its model still serves."""
    for dtype in (bench.dtype, DType.FLOAT32):
        host = _on_disk(bench, dtype, (64, 32))
        with tempfile.TemporaryFile() as file:
            file.write(host.tobytes())
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0)  # shared: what is written to it is what the file holds
            view = np.frombuffer(mapped, host.dtype).reshape(host.shape)
            view.flags.writeable = False
            array = bench.device.load(ArraySource("mapped", view), bench.dtype)
            del view
            mapped[:] = b"\xff" * len(mapped)
            came = bench.device.download(array)
            note = "the tensor was mapped from a file that was overwritten after load(): its values are copied"
            bench.check_equal("load", came, host.astype(bench.dtype.numpy), note)


def _source_untouched(bench: Workbench) -> None:
    host = _on_disk(bench, bench.dtype, (32, 32))
    before = host.copy()
    weight = DenseWeight(bench.device.load(ArraySource("weight", host), bench.dtype))
    prepared = bench.device.prepare(weight, WeightRole.LINEAR)
    x = bench.device.upload(np.ones((2, 32), bench.dtype.numpy))
    bench.device.download(bench.device.ops.linear(x, prepared))
    _same_bits(bench, host, before, "of a checkpoint, after load(), prepare() and linear()")


# ---------------------------------------------------------------------------------------------------------- weights


def _prepared_linear(role: WeightRole, bench: Workbench) -> None:
    for rows, columns, bias in ((48, 32, False), (33, 16, True)):
        matrix, weight = _weight(bench, rows, columns, role, bias)
        _check_linear(bench, weight, matrix, role)


def _prepared_embedding(role: WeightRole, bench: Workbench) -> None:
    (matrix, _), weight = _weight(bench, 50, 24, role)
    ids = np.array([0, 49, 7, 7, 31], np.int32)
    came = bench.device.download(bench.device.ops.embedding(bench.device.upload(ids.copy()), weight))
    bench.check_equal("embedding", came, matrix[ids], f"weight [50, 24] prepared as {role.value}")


def _prepared_norm(bench: Workbench) -> None:
    dtype = bench.dtype.numpy
    scale, x = (bench.rng.standard_normal(shape).astype(dtype) for shape in ((40,), (3, 40)))
    weight = bench.device.prepare(bench.device.load(ArraySource("norm", scale), bench.dtype), WeightRole.NORM)
    normed, _ = bench.device.ops.rms_norm(bench.device.upload(x.copy()), weight, 1e-5)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide * wide, -1, keepdims=True) + 1e-5) * scale.astype(np.float64)
    bench.check("rms_norm", bench.dtype, bench.device.download(normed), expected, "a weight prepared as norm")


def _prepared_other(bench: Workbench) -> None:
    """A bare array that only model code uses stays an array that can be downloaded."""
    host = bench.rng.standard_normal((5, 12)).astype(bench.dtype.numpy)
    array = bench.device.load(ArraySource("other", host), bench.dtype)
    came = bench.device.download(bench.device.prepare(array, WeightRole.OTHER))
    bench.check_equal("prepare", came, host, "an array of role other")


def _one_after_another(bench: Workbench) -> None:
    """Weights of one shape follow each other, layer by layer: each has memory of its own."""
    made = [_weight(bench, 32, 32, WeightRole.LINEAR, bias=True) for _ in range(4)]
    for matrix, weight in made:
        _check_linear(bench, weight, matrix, WeightRole.LINEAR)


def _weight(
    bench: Workbench, rows: int, columns: int, role: WeightRole, bias: bool = False
) -> tuple[tuple[np.ndarray, np.ndarray | None], Weight]:
    dtype, device = bench.dtype.numpy, bench.device
    matrix = bench.rng.standard_normal((rows, columns)).astype(dtype)
    extra = bench.rng.standard_normal(rows).astype(dtype) if bias else None
    array = device.load(ArraySource("weight", matrix), bench.dtype)
    loaded: Array | None = None if extra is None else device.load(ArraySource("bias", extra), bench.dtype)
    return (matrix, extra), device.prepare(DenseWeight(array, loaded), role)


def _check_linear(
    bench: Workbench, weight: Weight, host: tuple[np.ndarray, np.ndarray | None], role: WeightRole
) -> None:
    matrix, bias = host
    x = bench.rng.standard_normal((5, matrix.shape[1])).astype(bench.dtype.numpy)
    expected = x.astype(np.float64) @ matrix.astype(np.float64).T
    if bias is not None:
        expected += bias.astype(np.float64)
    came = bench.device.download(bench.device.ops.linear(bench.device.upload(x.copy()), weight))
    bench.check("linear", bench.dtype, came, expected, f"weight {list(matrix.shape)} prepared as {role.value}")


# ---------------------------------------------------------------------------------------------------------- helpers


def _any_bits(bench: Workbench, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of every kind: NaN, infinities, -0.0, subnormals; for integers the borders."""
    count = int(np.prod(shape))
    if dtype.numpy.kind in "iu":
        borders = np.array([np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max, 0, 1], dtype.numpy)
        filler = bench.rng.integers(borders[0], int(borders[1]) + 1, count).astype(dtype.numpy)
    else:
        borders = np.array([np.nan, -0.0, np.inf, -np.inf, 0.0, 1e-40, 6e-8], np.float32).astype(dtype.numpy)
        filler = bench.rng.standard_normal(count).astype(dtype.numpy)
    taken = min(count, len(borders))
    filler[:taken] = borders[:taken]
    result: np.ndarray = bench.rng.permutation(filler).reshape(shape)
    return result


def _on_disk(bench: Workbench, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Weights as a checkpoint has them, of magnitudes from 1e-3 to 1e2; in float32 with exact ties of 16-bit dtypes."""
    values = bench.rng.standard_normal(shape) * 10.0 ** bench.rng.uniform(-3.0, 2.0, shape)
    host = values.astype(np.float32)
    if dtype is DType.FLOAT32:
        ties = bench.rng.integers(0, 2**16, shape).astype(np.uint32) << 16 | 0x8000  # half way between two bfloat16
        tied = ties.view(np.float32)
        small = np.abs(tied) < 1e3
        host = np.where(small & (np.abs(tied) > 1e-3), tied, host)
    return np.clip(host, -400.0, 400.0).astype(dtype.numpy)


def _same_bits(bench: Workbench, got: np.ndarray, expected: np.ndarray, which: str) -> None:
    mine, right = (np.ascontiguousarray(array).view(np.uint8) for array in (got, expected))
    wrong = int(np.sum(mine != right)) if mine.shape == right.shape else -1
    bench.require(
        wrong == 0,
        f"An array of {expected.dtype.name} {which} does not have the bits it should: "
        + (f"{wrong} of {right.size} bytes differ." if wrong > 0 else f"it has shape {got.shape}."),
    )
