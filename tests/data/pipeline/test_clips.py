"""Pixels of training clips from JPEGs, beside whole frames decoded by Pillow and interpolated in NumPy."""

import functools
import io
import itertools
import types

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.batches import VARIED, assert_same, take
from vivit_jax import augment, sharding
from vivit_jax.data import pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.records import reader
from vivit_jax.data.records.split import open_split
from vivit_jax.data.selection import sampling
from vivit_jax.train.setup import TrainSetup


def weights(window, length, size, antialias):
    """Triangle weights of the stored pixels start..start + window for each of `size` pixels: [size, length]."""
    start, count = window
    ratio = count / size
    centre = (np.arange(size)[:, None] + 0.5) * ratio
    support = max(ratio, 1) if antialias else 1
    if not antialias:
        centre = np.clip(centre, 0.5, count - 0.5)
    inside = np.maximum(0, 1 - np.abs(np.arange(count)[None] + 0.5 - centre) / support)
    result = np.zeros((size, length))
    result[:, start : start + count] = inside / inside.sum(1, keepdims=True)
    return result


def expected_clip(frames, spec, draws):
    """The clip by definition: window of the whole frames, resized, mirrored."""
    crop = spec.image_size
    box = sampling.train_window(*frames.shape[1:3], spec, draws)
    antialias = min(crop[0] / box.height, crop[1] / box.width) < 0.75
    rows = weights((box.top, box.height), frames.shape[1], crop[0], antialias)
    columns = weights((box.left, box.width), frames.shape[2], crop[1], antialias)
    clip = np.einsum("ih,jw,khwc->kijc", rows, columns, frames.astype(float), optimize=True)
    return clip[:, :, ::-1] if draws[5] < spec.flip_probability else clip


@pytest.mark.parametrize(
    ("size", "crop", "form"),
    [
        ((7, 9), (16, 20), {"subsampling": 2}),
        ((7, 9), (5, 6), {"subsampling": 0}),
        ((16, 16), (16, 16), {"subsampling": 2}),
        ((33, 47), (24, 20), {"subsampling": 1}),
        ((93, 141), (64, 72), {"subsampling": 2}),
        ((93, 141), (64, 72), {"mode": "L"}),
        ((120, 75), (33, 41), {"subsampling": 2}),
    ],
)
def test_clip_equals_interpolated_whole_frames(size, crop, form):
    """Frames below a JPEG block, sides that are no multiple of it, windows at all borders; on host and device."""
    rng = np.random.default_rng(0)
    frames, jpegs = [], []
    for _ in range(2):
        noise = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(form.get("mode", "RGB"))
        noise.save(file := io.BytesIO(), "JPEG", quality=85, subsampling=form.get("subsampling", -1))
        jpegs.append(file.getvalue())
        frames.append(np.asarray(Image.open(file).convert("RGB")))
    frames, stored = np.stack(frames), tf.constant(jpegs)
    spec = pipeline.ClipSpec(
        2, crop, short_side=max(crop), random_crop=True, scale_jitter=(0.6, 1.6), flip_probability=0.5
    )

    def read(video, numbers, window=None, finish=None):
        return reader.decode_frames(tf.gather(stored, numbers), window, finish)

    region = sampling.largest_window(*(np.array([side]) for side in size), spec)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([sampling.num_draws(spec)], tf.float64)])
    def make(draws):
        counts = [tf.constant(n, tf.int64) for n in frames.shape[:3]]
        clip = clips.train_clip(read, tf.constant(0, tf.int64), *counts, spec, draws)
        # A region wider than the frame is padded, as for the smaller videos of a data set.
        padded = (region[0], region[1] + 3)
        part = clips.train_region(read, tf.constant(0, tf.int64), *counts, spec, draws, padded)
        return clip, part, clips.window_in_region(*counts[1:], spec, draws, padded)

    resize = jax.jit(functools.partial(augment.resize_windows, size=crop))
    corners = itertools.product((0.0, 0.4, 0.999), (0.2, 0.999), (0.0, 0.37, 0.999), (0.0, 0.61, 0.999))
    for number, (height, width, top, left) in enumerate(corners):
        draws = np.array([0.0, height, width, top, left, 0.9 * (number % 2)])
        clip, part, window = (x.numpy() for x in make(tf.constant(draws)))
        expected = expected_clip(frames, spec, draws)
        np.testing.assert_allclose(clip.astype(float), expected, atol=0.51)
        np.testing.assert_allclose(resize(part[None], window[None])[0].astype(float), expected, atol=0.51)


def test_batches_resized_on_the_device(tiny_records):
    """As those resized by the pipeline but for rounding, split over the mesh, the same after a restart."""
    records, size = open_split(tiny_records, "train"), 16
    stream = functools.partial(pipeline.train_batches, records, VARIED, size, seed=3)
    on_device = PipelineOptions(resize_on_device=True)
    mesh, experiment = sharding.make_mesh(), types.SimpleNamespace(batch_size=size)
    setup = TrainSetup(experiment, mesh, None, None, clip_spec=VARIED, program=None, total_steps=3, eval_interval=0)
    on_host, sent = take(stream(), 3), take(stream(options=on_device), 3)
    resumed = take(stream(start_step=2, options=on_device), 1)
    for expected, batch in zip(on_host, sent, strict=True):
        placed = setup.place_batch(batch)
        assert placed["video"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 5)
        difference = np.abs(np.asarray(placed["video"]).astype(int) - expected["video"])
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 0.001
        assert_same(expected, jax.device_get(placed) | {name: expected[name] for name in ("video", "index")})
    np.testing.assert_array_equal(resumed[0]["video"], sent[2]["video"])
    np.testing.assert_array_equal(resumed[0]["window"], sent[2]["window"])
