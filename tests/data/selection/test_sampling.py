"""Sampling arithmetic in NumPy, and TensorFlow against NumPy."""

from fractions import Fraction

import numpy as np
import pytest

from vivit_jax.data.host_tf import tf
from vivit_jax.data.selection import sampling
from vivit_jax.data.selection.sampling import ClipSpec


def train_frames(frames, clip, stride, draw):
    return sampling.train_frames(frames, ClipSpec(clip, (8, 8), stride), [draw])


def segment_frames(frames, clip, draws):
    spec = ClipSpec(clip, (8, 8), sampling="segments")
    return sampling.train_frames(frames, spec, np.concatenate([np.zeros(sampling.num_draws(spec) - clip), draws]))


def view_frames(frames, clip, stride, count, i):
    return sampling.view_frames(frames, ClipSpec(clip, (8, 8), stride), count, i)


def segment_view_frames(frames, clip, count, i):
    return sampling.view_frames(frames, ClipSpec(clip, (8, 8), sampling="segments"), count, i)


def test_training_starts_are_uniform():
    draws = (np.arange(4000) + 0.5) / 4000
    starts = [train_frames(40, 16, 2, draw)[0] for draw in draws]
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == list(range(40 - 16 * 2 + 1))
    assert counts.max() - counts.min() <= 1
    assert train_frames(40, 16, 2, np.nextafter(1.0, 0.0))[-1] == 8 + 30


def test_short_videos_loop():
    assert train_frames(5, 8, 2, 0.9).tolist() == [0, 2, 4, 1, 3, 0, 2, 4]
    assert view_frames(1, 4, 3, 2, 1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("frames", "clip", "stride", "count"), [(250, 32, 2, 4), (64, 32, 2, 4), (67, 32, 2, 3), (300, 16, 4, 1)]
)
def test_test_clips_match_linspace(frames, clip, stride, count):
    last = max(0, frames - clip * stride)
    for i in range(count):
        start = int(Fraction(last) * i / max(count - 1, 1))
        got = view_frames(frames, clip, stride, count, i)
        assert got.tolist() == [start + stride * k for k in range(clip)]
        assert got[0] == int(np.linspace(0, last, count)[i])


def test_one_frame_per_segment():
    rng = np.random.default_rng(0)
    for frames in (1, 5, 8, 37, 240):
        edges = [Fraction(frames * i, 8) for i in range(9)]
        for draws in (np.zeros(8), np.full(8, 1 - 1e-9), rng.uniform(size=8)):
            numbers = segment_frames(frames, 8, draws)
            assert 0 <= numbers[0] <= numbers[-1] < frames
            for i, number in enumerate(numbers):
                assert int(edges[i]) <= number < max(edges[i + 1], int(edges[i]) + 1)
    draws = (np.arange(4000) + 0.5)[:, None] / 4000
    fourth = [segment_frames(80, 8, row)[3] for row in np.repeat(draws, 8, 1)]
    first, counts = np.unique(fourth, return_counts=True)
    assert first.tolist() == list(range(30, 40))
    assert counts.tolist() == [400] * 10


def test_evaluation_takes_segment_centres():
    assert segment_view_frames(80, 8, 1, 0).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert segment_view_frames(3, 8, 1, 0).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    views = [segment_view_frames(96, 8, 4, i).tolist() for i in range(4)]
    assert [view[0] for view in views] == [1, 4, 7, 10]
    assert sorted(np.ravel(views)) == np.ravel(np.transpose(views)).tolist(), "evenly through the video, by turns"


def test_repeated_views_are_counted():
    spec = ClipSpec(8, (64, 64), stride=4)
    frames, size = np.array([20, 32, 34, 35, 100]), np.full(5, 64)
    repeated = sampling.repeated_views(frames, size, size * 2, spec, 4, 1)
    distinct = [len({tuple(view_frames(n, 8, 4, 4, i)) for i in range(4)}) for n in frames]
    assert repeated.tolist() == [count < 4 for count in distinct] == [True, True, True, False, False]
    assert not sampling.repeated_views(frames, size, size * 2, spec, 1, 3).any()
    assert (
        sampling.repeated_views(frames, size, np.array([64, 65, 66, 80, 128]), spec, 1, 3).tolist()
        == [True] * 2 + [False] * 3
    )
    segments = ClipSpec(8, (64, 64), sampling="segments")
    assert sampling.repeated_views(np.array([8, 16, 32, 33]), size[:4], size[:4], segments, 4, 1).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_test_crops():
    spec = ClipSpec(1, (224, 224))
    boxes = [sampling.view_crop(256, 340, spec, 3, i) for i in range(3)]
    assert [(b.top, b.left) for b in boxes] == [(16, 0), (16, 58), (16, 116)]
    boxes = [sampling.view_crop(454, 256, spec, 3, i) for i in range(3)]
    assert [(b.top, b.left) for b in boxes] == [(0, 16), (115, 16), (230, 16)]
    box = sampling.view_crop(256, 341, spec, 1, 0)
    assert (box.top, box.left) == (16, 58)


def test_resized():
    large, small = ClipSpec(1, (224, 224), short_side=256), ClipSpec(1, (64, 64))
    assert sampling.resized(720, 1280, large) == (256, 455)
    assert sampling.resized(1280, 720, large) == (455, 256)
    assert sampling.resized(64, 64, small) == (64, 64)
    assert sampling.resized(40, 80, small) == (64, 128), "enlarged until the crop fits"


def test_training_windows():
    rng = np.random.default_rng(0)
    heights, lefts = [], []
    spec = ClipSpec(1, (224, 200), short_side=256, scale_jitter=(0.9, 1.33), random_crop=True)
    for _ in range(3000):
        box = sampling.train_window(256, 340, spec, rng.uniform(size=6))
        assert 0 <= box.top <= 256 - box.height
        assert 0 <= box.left <= 340 - box.width
        # Resizing the window to the crop is the jittered scale, to half a stored pixel.
        assert 224 / 1.33 - 1 <= box.height <= 224 / 0.9 + 1
        assert 200 / 1.33 - 1 <= box.width <= 200 / 0.9 + 1
        heights.append(224 / box.height)
        lefts.append(box.left / (340 - box.width))
    # Factors uniform in (0.9, 1.33), places uniform: means within five standard errors.
    assert np.mean(heights) == pytest.approx(1.115, abs=5 * 0.43 / 12**0.5 / 3000**0.5 + 0.003)
    assert np.mean(lefts) == pytest.approx(0.5, abs=5 / 12**0.5 / 3000**0.5)
    box = sampling.train_window(64, 64, ClipSpec(1, (64, 64), random_crop=True), [0.9] * 6)
    assert (box.top, box.left, box.height, box.width) == (0, 0, 64, 64)
    box = sampling.train_window(256, 340, ClipSpec(1, (112, 112)), [0.9] * 6)
    assert (box.top, box.left, box.height, box.width) == (72, 114, 112, 112)


def test_tensorflow_matches_numpy():
    rng = np.random.default_rng(1)
    ops = tf.experimental.numpy
    i64 = lambda *x: [tf.constant(y, tf.int64) for y in x]  # noqa: E731
    for number in range(50):
        frames, height, width = rng.integers(1, 300), rng.integers(60, 700), rng.integers(60, 700)
        by = {"stride": 2} if number % 2 else {"sampling": "segments"}
        side = None if rng.integers(2) else 128
        jitter = None if rng.integers(2) else (0.9, 1.33)
        spec = ClipSpec(5, (112, 96), short_side=side, scale_jitter=jitter, random_crop=True, **by)
        draws = rng.uniform(size=sampling.num_draws(spec))
        tensor = tf.constant(draws, tf.float64)
        pairs = [
            (sampling.train_frames(frames, spec, draws), sampling.train_frames(*i64(frames), spec, tensor, ops)),
            (sampling.view_frames(frames, spec, 4, 2), sampling.view_frames(*i64(frames), spec, 4, 2, ops)),
        ]
        size = sampling.resized(height, width, spec)
        pairs += zip(size, sampling.resized(*i64(height, width), spec, ops), strict=True)
        window = sampling.train_window(height, width, spec, draws)
        pairs += zip(window, sampling.train_window(*i64(height, width), spec, tensor, ops), strict=True)
        for crop in range(3):
            box = sampling.view_crop(*size, spec, 3, crop)
            pairs += zip(box, sampling.view_crop(*i64(*size), spec, 3, crop, ops), strict=True)
        for expected, got in pairs:
            assert np.asarray(got).dtype == np.int64
            np.testing.assert_array_equal(np.asarray(expected), np.asarray(got))


def test_selected_views_match_smaller_evaluation():
    assert [sampling.select_views(7, n) for n in (1, 2, 3, 4)] == [(0,), (0, 6), (0, 3, 6), (0, 2, 4, 6)]
    assert sampling.select_views(5, 5) == (0, 1, 2, 3, 4)
    assert [sampling.select_views(6, n, "segments") for n in (1, 2, 3)] == [(3,), (1, 4), (1, 3, 5)]
