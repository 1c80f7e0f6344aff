"""Arrays between host and card: one transfer each way for a step, chunks for a checkpoint, nobody waits in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backend import ArraySource, ConcatenatedSource, DeviceLostError, DType
from octavo.backend.tree import flatten
from octavo_torch.gpu import uploads
from octavo_torch.gpu.pinned import PinnedPool
from octavo_torch.gpu.uploads import Uploads

FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2)


# ------------------------------------------------------------------------------------------------------------- a step


def test_a_steps_inputs_travel_in_one_transfer_and_arrive_aligned(run: Any, traffic: Any) -> None:
    inputs = run.make_inputs(3, run.board)
    with traffic:
        staged = run.device.stage(inputs)
    assert (traffic.up, traffic.down) == (1, 0)
    came, structure = flatten(staged)
    sent, expected = flatten(inputs)
    assert structure == expected
    for tensor, leaf in zip(came, sent, strict=True):
        if isinstance(leaf, np.ndarray):
            np.testing.assert_array_equal(tensor.numpy(), leaf)
            assert tensor.data_ptr() % 16 == 0
        else:
            assert tensor is leaf


def test_inputs_that_are_on_the_card_are_left_alone(run: Any, traffic: Any) -> None:
    staged = run.device.stage(run.make_inputs(3, run.board))
    with traffic:
        assert run.device.stage(staged) is staged
    assert traffic.up == 0


def test_a_staging_buffer_is_used_again_only_once_the_card_has_read_it(run: Any, runtime: Any) -> None:
    runtime.held = True
    staged = [run.device.stage(run.make_inputs(seed, run.board)) for seed in range(3)]
    assert len(runtime.buffers) == 3
    runtime.finish(1)
    staged.append(run.device.stage(run.make_inputs(3, run.board)))
    assert len(runtime.buffers) == 3  # the first one's
    staged.append(run.device.stage(run.make_inputs(4, run.board)))
    assert len(runtime.buffers) == 4


def test_two_steps_in_flight_take_two_buffers_each_way_for_ever(run: Any, runtime: Any) -> None:
    runtime.held = True
    before = None
    for seed in range(12):
        outputs, _ = run.launch(seed)
        runtime.finish(max(0, runtime.queued - 2))  # all but this step
        if before is not None:
            run.device.download(before.sums)
        before = outputs
    assert len(runtime.buffers) <= 4


def test_all_outputs_of_a_step_come_down_in_one_transfer_behind_it(run: Any, traffic: Any) -> None:
    with traffic:
        outputs, right = run.launch(0)
        for name in ("sums", "token_ids", "board"):
            np.testing.assert_array_equal(run.device.download(getattr(outputs, name)), getattr(right, name).numpy())
    assert (traffic.up, traffic.down) == (1, 1)


def test_a_download_waits_for_its_own_step_and_not_for_the_next(run: Any, runtime: Any) -> None:
    runtime.held = True
    first, right = run.launch(0)
    through = runtime.queued
    run.launch(1)
    runtime.finish(through)
    np.testing.assert_array_equal(run.device.download(first.sums), right.sums.numpy())


def test_what_was_downloaded_is_the_callers(run: Any) -> None:
    outputs, right = run.launch(0)
    came = run.device.download(outputs.sums)
    came += 1.0
    np.testing.assert_array_equal(run.device.download(outputs.sums), right.sums.numpy())


def test_outputs_that_nobody_downloads_give_their_buffer_back(run: Any, runtime: Any) -> None:
    for seed in range(20):
        run.launch(seed)
    assert len(runtime.buffers) <= 4


def test_a_card_that_never_finishes_is_lost_and_hangs_nobody(
    start: Any, open_device: Callable[..., Any], runtime: Any
) -> None:
    run = start(open_device(step_seconds="1"))
    runtime.held = True
    outputs, _ = run.launch(0)
    with pytest.raises(DeviceLostError, match="after 1 seconds"):
        run.device.download(outputs.sums)


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("target", FLOATS[:3])
@pytest.mark.parametrize("source", FLOATS)
def test_loading_converts_as_numpy_does(device: Any, source: DType, target: DType) -> None:
    host = (np.random.default_rng(0).standard_normal((37, 24)) * 20).astype(np.float32).astype(source.numpy)
    came = device.download(device.load(ArraySource("w", host), target))
    np.testing.assert_array_equal(came, host.astype(np.float32).astype(target.numpy))


SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, parts=st.integers(1, 3), turned=st.booleans(), chunk=st.sampled_from([4, 12, 64, 4096]))
def test_chunks_of_any_size_give_the_source(shape: tuple[int, ...], parts: int, turned: bool, chunk: int) -> None:
    rng = np.random.default_rng(len(shape) * parts)
    arrays = [rng.standard_normal(shape[::-1] if turned else shape).astype(np.float32) for _ in range(parts)]
    arrays = [array.T if turned else array for array in arrays]
    whole = np.concatenate(arrays)
    got = np.concatenate([piece.reshape(-1) for array in arrays for piece in uploads._pieces(array, chunk)])
    np.testing.assert_array_equal(got, whole.reshape(-1))
    assert all(piece.nbytes <= max(chunk, 4) for array in arrays for piece in uploads._pieces(array, chunk))


def test_a_fused_tensor_is_loaded_part_by_part_and_two_chunks_at_a_time(
    device: Any, runtime: Any, traffic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "CHUNK", 4096)
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((rows, 64)).astype(dtype) for rows, dtype in ((100, np.float32), (30, np.float16))]
    parts.append(rng.standard_normal((64, 30)).astype(ml_dtypes.bfloat16).T)
    source = ConcatenatedSource("qkv", [ArraySource(f"part{i}", part) for i, part in enumerate(parts)])
    with traffic:
        loaded = device.load(source, DType.BFLOAT16)
    assert max(runtime.buffers.values()) == 4096
    expected = np.concatenate([part.astype(np.float32) for part in parts]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(device.download(loaded), expected)
    assert traffic.up == 7 + 1 + 1  # 25,600 bytes, 3,840 and 3,840


def test_loading_never_has_more_than_two_chunks_on_their_way(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CHUNK", 4096)
    waited: list[int] = []

    def wait(mark: Any, limit: float) -> None:
        waited.append(mark.number)
        runtime.finish(mark.number)

    monkeypatch.setattr(uploads, "wait", wait)
    runtime.held = True
    Uploads(runtime, PinnedPool(runtime), 1.0).upload(np.zeros(10 * 1024, np.float32))
    assert waited == list(range(1, 9))
    assert len(runtime.buffers) <= 3


def test_an_upload_is_a_copy_and_waits_for_nothing(device: Any, runtime: Any) -> None:
    runtime.held = True
    host = np.arange(12, dtype=np.int32).reshape(3, 4)
    array = device.upload(host)
    host[:] = 0
    assert torch.equal(array, torch.arange(12, dtype=torch.int32).view(3, 4))
