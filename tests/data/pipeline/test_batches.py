"""Batches: order, resumption, rows of processes, pixels, broken records."""

import dataclasses
import io
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.helpers.batches import PLAIN, VARIED, assert_same, take
from tests.helpers.videos import encode_segment, numbered_video, read_number, read_video, shown_numbers
from vivit_jax.data import build, pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.records import reader, scan
from vivit_jax.data.records.split import open_split
from vivit_jax.data.selection import order, sampling
from vivit_jax.data.video import decode, encode, rgb


@pytest.fixture(scope="module")
def train(tiny_records):
    return open_split(tiny_records, "train")


@pytest.fixture(scope="module")
def validation(tiny_records):
    return open_split(tiny_records, "validation")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Records of videos whose frames show their numbers: 7, 40, 100 and 16 frames of 64 x 96."""
    folder = tmp_path_factory.mktemp("numbered")
    lengths = {"short": 7, "middle": 40, "long": 100, "even": 16}
    lines = ["label,youtube_id,time_start,time_end,split"]
    for name, length in lengths.items():
        numbered_video(folder / "videos" / f"{name}.mp4", length, height=64, width=96)
        lines.append(f"{name},{name},0,99,train")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.csv").write_text("\n".join(lines))
    records = build.build(
        "kinetics400",
        folder / "videos",
        folder / "annotations",
        folder,
        build.BuildOptions(num_workers=0, progress=False),
    )
    return open_split(records, "train")


def test_batch_types_and_shapes(train):
    (batch,) = take(pipeline.train_batches(train, PLAIN, 4, seed=0), 1)
    assert set(batch) == {"video", "label", "mask", "index"}
    assert (batch["video"].dtype, batch["video"].shape) == (np.uint8, (4, 8, 64, 64, 3))
    assert (batch["mask"].dtype, batch["mask"].tolist()) == (np.float32, [1] * 4)
    assert batch["index"].dtype == np.int64
    assert set(batch["label"]) == {"verb", "noun"}
    for head, values in batch["label"].items():
        assert values.dtype == np.int32
        np.testing.assert_array_equal(values, train.labels[head][batch["index"]])


def test_every_video_once_per_epoch_with_odd_batch_size(train):
    seen = np.concatenate([batch["index"] for batch in take(pipeline.train_batches(train, PLAIN, 10, seed=5), 15)])
    epochs = seen[:144].reshape(3, 48)
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    other = np.concatenate([batch["index"] for batch in take(pipeline.train_batches(train, PLAIN, 10, seed=6), 4)])
    assert (seen[:40] != other).any()


@pytest.mark.parametrize("start", [1, 7])
def test_resume_mid_epoch_matches_uninterrupted_stream(train, start):
    whole = take(pipeline.train_batches(train, VARIED, 10, seed=1), start + 3)
    rest = take(pipeline.train_batches(train, VARIED, 10, seed=1, start_step=start), 3)
    for first, second in zip(whole[start:], rest, strict=True):
        assert_same(first, second)


def test_far_start(train):
    batches = pipeline.train_batches(train, PLAIN, 10, seed=1, start_step=900_000)
    batch = next(batches)
    assert batches.step == 900_001
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
    positions = 9_000_000 + np.arange(10)
    orders = {e: order.make_permutation(48, 1, tf.constant(e, tf.int64)).numpy() for e in set(positions // 48)}
    assert batch["index"].tolist() == [orders[p // 48][p % 48] for p in positions]


@pytest.mark.parametrize("processes", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_process_rows_make_up_the_batch(train, validation, processes):
    share = 16 // processes
    rows = [(i * share, (i + 1) * share) for i in range(processes)]
    stream = partial(pipeline.train_batches, train, VARIED, 16, seed=2, start_step=2)
    whole = take(stream(options=PipelineOptions(threads=3)), 2)
    parts = [take(stream(rows=r, options=PipelineOptions(threads=1)), 2) for r in rows]

    for step in range(2):
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *[part[step] for part in parts])
        assert_same(whole[step], joined)
    if processes == 2:
        return
    rows = [(i * 3, (i + 1) * 3) for i in range(4)] if processes == 8 else [(0, 6), (6, 12)]
    whole = list(pipeline.eval_batches(validation, PLAIN, 12, 2, 1))
    parts = [list(pipeline.eval_batches(validation, PLAIN, 12, 2, 1, rows=r)) for r in rows]
    assert {len(part) for part in parts} == {len(whole)} == {2}
    for step in range(2):
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *[part[step] for part in parts])
        assert_same(whole[step], joined)


@pytest.mark.parametrize("cache_gb", [2, 6 / 1024])
def test_cache_gives_equal_batches(train, cache_gb, caplog):
    """Decoded frames take 18 MB: with the smaller limit the records are read from the disk."""
    for spec in (PLAIN, VARIED):
        expected = take(pipeline.train_batches(train, spec, 16, seed=0), 2)
        options = PipelineOptions(cache=True, cache_gb=cache_gb)
        got = take(pipeline.train_batches(train, spec, 16, seed=0, options=options), 2)
        for first, second in zip(expected, got, strict=True):
            assert_same(first, second)
    refused = "0.0 GB decoded, more than the 0.0 GB left of data.cache_gb: not cached" in caplog.text
    assert refused == (cache_gb < 1)


def test_evaluation_sees_every_video_once(validation):
    batches = pipeline.eval_batches(validation, PLAIN, 6, temporal_views=3, spatial_views=2)
    assert batches.num_batches == 3
    got = list(batches)
    assert [batch["video"].shape for batch in got] == [(6, 6, 8, 64, 64, 3)] * 3
    indices = np.concatenate([batch["index"] for batch in got])
    masks = np.concatenate([batch["mask"] for batch in got])
    assert indices.tolist() == [*range(16), -1, -1]
    assert masks.tolist() == [1] * 16 + [0, 0]
    assert got[-1]["video"][-1].max() == 0
    verbs = np.concatenate([batch["label"]["verb"] for batch in got])
    np.testing.assert_array_equal(verbs[:16], validation.labels["verb"])
    assert batches.corrupt == 0


def test_clips_hold_the_expected_frames(numbered):
    """Frame numbers drawn into the clips come back: random starts with stride, looped where the video is short."""
    spec = pipeline.ClipSpec(6, (64, 96), stride=3)
    starts = {}
    for batch in take(pipeline.train_batches(numbered, spec, 4, seed=0), 25):
        for index, clip in zip(batch["index"], batch["video"], strict=True):
            numbers = [read_number(frame) for frame in clip]
            length = numbered.num_frames[index]
            assert numbers == [(numbers[0] + 3 * i) % length for i in range(6)]
            starts.setdefault(numbered.video_id[index], []).append(numbers[0])
    assert set(starts["short"]) == set(starts["even"]) == {0}, "nothing fits but the beginning"
    assert len(set(starts["middle"])) > 8
    assert max(starts["middle"]) <= 40 - 18
    assert len(set(starts["long"])) > 15
    batches = pipeline.eval_batches(numbered, spec, 4, temporal_views=4)
    assert batches.repeated_views == 2, "of 7 and of 16 frames"
    (batch,) = batches
    for index, views in enumerate(batch["video"]):
        for i, clip in enumerate(views):
            expected = sampling.view_frames(numbered.num_frames[index], spec, 4, i)
            assert [read_number(frame) for frame in clip] == expected.tolist()


def test_segments_and_repeated_augmentation(numbered):
    """Frame numbers drawn into the clips: one from each sixth of the video, another one in each clip of it."""
    spec = pipeline.ClipSpec(6, (64, 96), sampling="segments", clips_per_video=2)
    seen = {}
    for batch in take(pipeline.train_batches(numbered, spec, 8, seed=0), 6):
        assert (batch["index"][::2] == batch["index"][1::2]).all()
        assert sorted(batch["index"][::2]) == [0, 1, 2, 3], "every video once an epoch"
        for index, clip in zip(batch["index"], batch["video"], strict=True):
            numbers, length = [read_number(frame) for frame in clip], numbered.num_frames[index]
            assert all(i * length // 6 <= n < max((i + 1) * length / 6, n - 1) for i, n in enumerate(numbers))
            seen.setdefault(int(index), []).append(tuple(numbers))
    longest = int(np.argmax(numbered.num_frames))
    assert len(set(seen[longest])) == 12, "each clip has its own draws"
    batches = pipeline.eval_batches(numbered, spec, 4, temporal_views=3)
    (batch,) = batches
    for index, views in enumerate(batch["video"]):
        for i, clip in enumerate(views):
            expected = sampling.view_frames(numbered.num_frames[index], spec, 3, i)
            assert [read_number(frame) for frame in clip] == expected.tolist()
    distinct = [len({clip.tobytes() for clip in views}) for views in batch["video"]]
    assert batches.repeated_views == sum(count < 3 for count in distinct)


def test_description_names_threads_batches_and_cache(train):
    options = PipelineOptions(threads=3, prefetch=4)
    with pipeline.train_batches(train, PLAIN, 12, seed=0, rows=(0, 6), options=options) as batches:
        assert batches.description == "3 threads, 4 batches prefetched, 3.5 MB of batches, no cache"
    with pipeline.train_batches(train, PLAIN, 12, seed=0, options=PipelineOptions(cache=True)) as batches:
        assert batches.description.endswith(f"cache {int(train.num_frames.sum()) * 64 * 64 * 3 / 1e6:.1f} MB")


def test_three_crops_of_a_landscape_video(numbered):
    """Left, centre and right of 64 x 96: the field columns that each shows."""
    spec = pipeline.ClipSpec(1, (64, 64))
    (batch,) = pipeline.eval_batches(numbered, spec, 4, temporal_views=2, spatial_views=3)
    full = tf.function(reader.record_reader(numbered), autograph=False)(
        tf.constant(2, tf.int64), tf.constant([0, 99], tf.int64)
    ).numpy()
    for clip in range(2):
        for crop, left in enumerate((0, 16, 32)):
            np.testing.assert_array_equal(batch["video"][2, clip * 3 + crop, 0], full[clip, :, left : left + 64])


def planes_of(frames):
    """The channels of frames [K, H, W, C] one by one, as floats."""
    return frames.astype(float).transpose(0, 3, 1, 2).reshape(-1, *frames.shape[1:3])


@pytest.mark.parametrize(("stored", "target"), [((40, 50), (56, 64)), ((64, 64), (50, 60)), ((90, 120), (45, 40))])
def test_resize_matches_interpolation_oracle(stored, target):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, *stored, 3), dtype=np.uint8)
    got = clips.resized(partial(reader.cut, tf.constant(frames), None), stored, target).numpy().astype(float)
    ratio = [s / t for s, t in zip(stored, target, strict=True)]
    if max(ratio) > 1 / 0.75:
        # Antialiasing: every output is a triangle-weighted mean over `ratio` stored pixels to both sides.
        weights = []
        for s, t, r in zip(stored, target, ratio, strict=True):
            centre = (np.arange(t)[:, None] + 0.5) * r
            w = np.maximum(0, 1 - np.abs(np.arange(s)[None] + 0.5 - centre) / max(r, 1))
            weights.append(w / w.sum(1, keepdims=True))
        expected = np.einsum("ih,jw,khwc->kijc", *weights, frames)
    else:
        grid = [(np.arange(t) + 0.5) * r - 0.5 for t, r in zip(target, ratio, strict=True)]
        indices = np.meshgrid(*grid, indexing="ij")
        planes = [ndimage.map_coordinates(p, indices, order=1, mode="nearest") for p in planes_of(frames)]
        expected = np.stack(planes).reshape(2, 3, *target).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, expected, atol=0.51)


@pytest.mark.parametrize("form", [{"subsampling": x} for x in range(3)] + [{"progressive": True}, {"mode": "L"}])
def test_decoded_window_equals_whole_frame(form):
    """Equal to the bit, at all positions within a block and at the edges, whatever the chroma's resolution."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (93, 141, 3), dtype=np.uint8)).convert(form.pop("mode", "RGB"))
    noise.save(file := io.BytesIO(), "JPEG", quality=85, **form)
    jpegs = tf.constant([file.getvalue()])
    whole = reader.decode_frames(jpegs, None)
    decode_window = tf.function(reader.decode_frames, autograph=False)
    windows = [(0, 0, 93, 141), (3, 0, 90, 17), (0, 124, 93, 17), (92, 140, 1, 1)]
    for _ in range(40):
        top, left = rng.integers(92), rng.integers(140)
        windows.append((top, left, rng.integers(1, 94 - top), rng.integers(1, 142 - left)))
    for top, left, height, width in windows:
        got = decode_window(jpegs, tf.constant([top, left, height, width], tf.int32))
        np.testing.assert_array_equal(got, whole[:, top : top + height, left : left + width])


def test_crop_and_flip_of_given_draws():
    """Without resizing, a clip is an exact cut of the frames, mirrored if the draw says so."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 60, 80, 3), dtype=np.uint8)
    spec = pipeline.ClipSpec(4, (32, 40), stride=3, random_crop=True, flip_probability=0.25)
    size = [tf.constant(x, tf.int64) for x in frames.shape[:3]]
    in_memory = reader.memory_reader(tf.constant(frames))
    make = tf.function(
        lambda draws: clips.train_clip(in_memory, tf.constant(0, tf.int64), *size, spec, draws), autograph=False
    )
    for _ in range(20):
        draws = rng.uniform(size=sampling.num_draws(spec))
        start, top, left = int(draws[0] * 9), int(draws[3] * 29), int(draws[4] * 41)
        expected = frames[start : start + 12 : 3, top : top + 32, left : left + 40]
        if draws[5] < 0.25:
            expected = expected[:, :, ::-1]
        np.testing.assert_array_equal(make(tf.constant(draws)), expected)


def copied(split, folder):
    shutil.copytree(split.folder, folder)
    return open_split(folder, split.name)


def test_broken_records_are_masked_and_counted(train, validation, tmp_path):
    """One flipped bit fails the checksum; one JPEG that is none has a valid checksum. Neither ends the stream."""
    split = copied(train, tmp_path / "train")
    with open(split.shard_paths[0], "r+b") as file:
        file.seek(int(split.chunk_offset[split.first_chunk[5]]) + 200)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    for options in ({}, {"cache": True}):
        batches = pipeline.train_batches(split, PLAIN, 12, seed=0, options=PipelineOptions(**options))
        expected = take(pipeline.train_batches(train, PLAIN, 12, seed=0), 4)
        for sound in expected:
            batch = next(batches)
            np.testing.assert_array_equal(batch["index"], sound["index"])
            broken = batch["index"] == 5
            np.testing.assert_array_equal(batch["mask"], 1.0 - broken)
            assert batch["video"][broken].size == 0 or batch["video"][broken].max() == 0
            np.testing.assert_array_equal(batch["video"][~broken], sound["video"][~broken])
        assert batches.corrupt == 1
        batches.close()

    split = copied(validation, tmp_path / "validation")
    records = list(tf.data.TFRecordDataset(split.shard_paths[0]).as_numpy_iterator())
    index = int(split.first_chunk[2])
    example = tf.train.Example.FromString(records[index])
    jpegs = example.features.feature["frames"].bytes_list.value
    jpegs[0] = b"\0" * len(jpegs[0])
    records[index] = example.SerializeToString()
    with tf.io.TFRecordWriter(split.shard_paths[0]) as writer:
        for record in records:
            writer.write(record)
    assert scan.scan(split.folder)[-1].chunk_offset.tolist() == split.chunk_offset.tolist()
    batches = pipeline.eval_batches(split, PLAIN, 16)
    (batch,) = batches
    assert np.flatnonzero(batch["mask"] == 0).tolist() == [2]
    assert batch["index"].tolist() == list(range(16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"stride": 0}, "stride=0"),
        ({"image_size": (64,)}, r"image_size=\(64,\) must be \(height, width\)"),
        ({"short_side": 32}, r"short_side=32 is smaller than the crop \(64, 64\)"),
        ({"scale_jitter": (1.2, 0.9)}, "low <= high"),
        ({"flip_probability": 1.5}, r"flip_probability=1.5 must lie in \[0, 1\]"),
        ({"clips_per_video": 0}, "clips_per_video=0"),
        ({"sampling": "dense"}, "sampling='dense' is not known; choose one of random_start, segments"),
        ({"sampling": "segments"}, "stride=2, but sampling='segments'"),
    ],
)
def test_clip_spec_errors(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_argument_errors(train):
    for arguments, message in (
        ({"batch_size": 8, "seed": -1}, "seed=-1"),
        ({"batch_size": 8, "seed": 0, "start_step": -1}, "start_step=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.train_batches(train, PLAIN, **arguments)
    with pytest.raises(ValueError, match="batch_size=8 is not divisible by clips_per_video=3"):
        pipeline.train_batches(train, dataclasses.replace(PLAIN, clips_per_video=3), 8, seed=0)


@pytest.mark.parametrize("guess", [41, 0, 60])  # the number of frames, unknown, wrong
def test_views_of_file_convert_only_the_frames_they_need(tmp_path, monkeypatch, guess):
    path, spec = numbered_video(tmp_path / "v.mp4", 41), pipeline.ClipSpec(6, (48, 48), stride=2, short_side=56)
    assert decode.count_packets(path) == 41
    frames, zero, size = (
        tf.constant(read_video(path).frames),
        tf.constant(0, tf.int64),
        tf.constant([41, 64, 64], tf.int64),
    )
    expected = clips.views(reader.memory_reader(frames), zero, *tf.unstack(size), spec, 3, 2)
    converted = []
    convert = rgb.Converter.__call__
    monkeypatch.setattr(rgb.Converter, "__call__", lambda self, frame: converted.append(0) or convert(self, frame))
    monkeypatch.setattr(decode, "count_packets", lambda path: guess)
    np.testing.assert_array_equal(pipeline.views_from_file(path, spec, 3, 2), expected)
    assert len(converted) <= 3 * 6 * (1 if guess == 41 else 2)


def test_views_of_file_have_the_frame_rate_of_the_records(tmp_path):
    path, spec = numbered_video(tmp_path / "v.mp4", 40, fps=20), pipeline.ClipSpec(4, (64, 64))
    numbers = shown_numbers(encode_segment(path, encode.EncodeOptions(None, 90, fps=8)))
    views = pipeline.views_from_file(path, spec, 2, fps=8)
    assert [read_number(frame) for clip in views for frame in clip] == numbers[:4] + numbers[-4:]
    for number, frame in enumerate(read_video(path).frames[:20]):  # as a folder, whose rate that is
        Image.fromarray(frame).save(tmp_path / f"{number:03}.png")
    views = pipeline.views_from_file(tmp_path, spec, 5, fps=8)
    assert [read_number(frame) for clip in views for frame in clip] == list(range(20))


def test_distant_chunks_are_read_one_by_one(numbered, monkeypatch):
    """With the same result as in one pass."""
    spec = pipeline.ClipSpec(3, (48, 48))
    with pipeline.eval_batches(numbered, spec, 3, 4) as batches:
        expected = next(batches)["video"]
    monkeypatch.setattr(reader, "_MAX_SKIPPED", 0)
    with pipeline.eval_batches(numbered, spec, 3, 4) as batches:
        np.testing.assert_array_equal(next(batches)["video"], expected)
