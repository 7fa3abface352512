"""Measures the input pipeline beside other ways to read the same clips, time to the first batch, and the build.

    python -m benchmarks.data [--videos=24] [--rounds=5] [--size=256x340] [--seconds=10]

Makes videos (a drifting texture, H.264, 25 frames a second), builds records of them with the package's own builder, and
times training clips of 32 frames, stride 2, 224 x 224. Times are CPU times of this process, which one core would need,
so that other processes have little influence. The ways alternate within a round; results are medians.

* ours: `pipeline.train_batches` from records on disk (in the page cache) to batches; with the published recipe (random
  crop, scale jitter, flip), resized by the host or left to the device, and with a random crop alone.
* bare decode_jpeg: the same number of whole frames, nothing else.
* DMVR: a whole clip in a SequenceExample; its frames decoded, resized to a short side of 256, cropped, flipped.
* PyAV, decord, torchcodec: the frames from the mp4 files, one thread, then crop, scale jitter and flip by our own code.
  A package that is missing or cannot be loaded is skipped; torchcodec needs FFmpeg's shared libraries.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vivit_jax.data import build, pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.records.reader import cut
from vivit_jax.data.records.split import RecordSplit, open_split
from vivit_jax.data.selection.sampling import num_draws
from vivit_jax.data.video import decode, encode

FRAMES, STRIDE, CROP, SHORT = 32, 2, 224, 256
FULL_SPLIT = 240_480  # videos of Kinetics-400's training split that are still there, about


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a picture with detail at all scales, with about the JPEG size of a frame of a real video."""
    picture = np.full((height, width, 3), 128.0)
    for cell, strength in ((1, 4), (2, 9), (4, 22), (16, 60), (64, 60)):
        noise = rng.normal(size=(height // cell + 2, width // cell + 2, 3)) * strength
        noise = np.stack(
            [np.asarray(Image.fromarray(n).resize((width, height), Image.BICUBIC)) for n in np.moveaxis(noise, 2, 0)], 2
        )
        picture += noise
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_video(path: Path, seed: int, height: int, width: int, frames: int) -> None:
    """Writes a video of a window that drifts over a texture."""
    rng = np.random.default_rng(seed)
    big = texture(rng, height + 64, width + 64)
    with av.open(f"file:{path}", "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            down, across = (int(32 + 31 * np.sin(i / 17 + seed + k)) for k in (0, 1))
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(big[down : down + height, across : across + width]))
                )
            )
        out.mux(stream.encode())


def make_data(folder: Path, args: argparse.Namespace) -> tuple[RecordSplit, list[Path], float]:
    """Builds records in the format of Kinetics; returns (records, videos, seconds of the build)."""
    height, width = map(int, args.size.split("x"))
    (folder / "videos").mkdir()
    (folder / "annotations").mkdir()
    paths, rows = [], []
    for i in range(args.videos):
        path = folder / "videos" / f"video{i:07d}_000000_{args.seconds:06d}.mp4"
        write_video(path, i, height, width, 25 * args.seconds)
        paths.append(path)
        rows.append((f"class {i % 4}", f"video{i:07d}", 0, args.seconds, "train"))
    for name in ("train", "val"):
        with (folder / "annotations" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "youtube_id", "time_start", "time_end", "split"), *rows])
    start = time.perf_counter()
    records = build.build(
        "kinetics400", folder / "videos", folder / "annotations", folder / "records", build.BuildOptions(progress=False)
    )
    return open_split(records, "train"), paths, time.perf_counter() - start


def write_dmvr(split: RecordSplit, path: Path) -> None:
    """Writes the same JPEGs with a whole clip in each SequenceExample."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for video in range(split.num_videos):
            frames = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])) for jpeg in jpegs_of(split, video)]
            lists = tf.train.FeatureLists(feature_list={"image/encoded": tf.train.FeatureList(feature=frames)})
            writer.write(tf.train.SequenceExample(feature_lists=lists).SerializeToString())


def jpegs_of(split: RecordSplit, video: int) -> list[bytes]:
    """Returns the stored JPEG frames of one video."""
    chunks = slice(int(split.first_chunk[video]), int(split.first_chunk[video] + split.num_chunks[video]))
    records = []
    with open(split.shard_paths[int(split.chunk_shard[chunks][0])], "rb") as file:
        for offset, length in zip(split.chunk_offset[chunks], split.chunk_length[chunks], strict=True):
            file.seek(offset + 12)  # after the record's length and checksum
            records.append(file.read(length))
    features = [tf.train.Example.FromString(record).features.feature for record in records]
    return [jpeg for feature in features for jpeg in feature["frames"].bytes_list.value]


def dmvr_clip(jpegs: tf.Tensor) -> tf.Tensor:
    """Processes a whole clip as the published DMVR pipeline: sample, decode, short side, crop, flip."""
    start = tf.random.uniform([], 0, tf.shape(jpegs)[0] - FRAMES * STRIDE, tf.int32)
    chosen = tf.gather(jpegs, start + STRIDE * tf.range(FRAMES))
    frames = tf.map_fn(lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3), chosen, fn_output_signature=tf.uint8)
    return augment(frames)


def augment(frames: tf.Tensor) -> tf.Tensor:
    """Resizes the short side to 256, crops at random, flips with probability 0.5."""
    size = tf.cast(tf.shape(frames)[1:3], tf.float32)
    size = tf.cast(size * SHORT / tf.reduce_min(size), tf.int32)
    frames = tf.cast(tf.image.resize(frames, size), tf.uint8)
    frames = tf.image.random_crop(frames, [FRAMES, CROP, CROP, 3])
    return tf.cond(tf.random.uniform([]) < 0.5, lambda: tf.reverse(frames, [2]), lambda: frames)


def feeds(split: RecordSplit, paths: list[Path], folder: Path, batch: int) -> dict[str, Iterator]:
    """Returns {way: endless iterator}; each `next` makes `batch` clips."""
    crop = pipeline.ClipSpec(
        num_frames=FRAMES, image_size=(CROP, CROP), stride=STRIDE, short_side=SHORT, random_crop=True
    )
    recipe = dataclasses.replace(crop, scale_jitter=(0.9, 1.33), flip_probability=0.5)
    one_thread = PipelineOptions(threads=1, prefetch=1)
    ways: dict[str, Iterator] = {
        "ours, recipe": pipeline.train_batches(split, recipe, batch, seed=0, options=one_thread),
        "ours, device resizes": pipeline.train_batches(
            split, recipe, batch, seed=0, options=dataclasses.replace(one_thread, resize_on_device=True)
        ),
        "ours, crop alone": pipeline.train_batches(split, crop, batch, seed=0, options=one_thread),
    }
    some = tf.constant(jpegs_of(split, 0)[: FRAMES * STRIDE : STRIDE])
    bare = tf.function(
        lambda: tf.map_fn(lambda j: tf.io.decode_jpeg(j, channels=3), some, fn_output_signature=tf.uint8)
    )
    ways["bare decode_jpeg"] = repeat(lambda i: bare(), batch)
    write_dmvr(split, folder / "dmvr.tfrecord")

    def parse(record: tf.Tensor) -> tf.Tensor:
        feature = {"image/encoded": tf.io.FixedLenSequenceFeature([], tf.string)}
        return dmvr_clip(tf.io.parse_single_sequence_example(record, sequence_features=feature)[1]["image/encoded"])

    whole = tf.data.TFRecordDataset(str(folder / "dmvr.tfrecord")).repeat().map(parse, 1).batch(batch).prefetch(1)
    ways["DMVR, whole clips"] = iter(whole)
    finish = clip_maker(recipe)
    rng = np.random.default_rng(0)

    def from_file(read: Callable[[Path, np.random.Generator], np.ndarray]) -> Iterator:
        return repeat(lambda i: finish(read(paths[i % len(paths)], rng), rng.uniform(size=num_draws(recipe))), batch)

    return ways | {f"{name}, mp4": from_file(read) for name, read in file_readers().items()}


def clip_maker(recipe: pipeline.ClipSpec) -> Callable:
    """Returns the function that makes our training clip of decoded frames uint8 [32, H, W, 3] and uniform draws."""
    spec = dataclasses.replace(recipe, stride=1)

    signature = tf.TensorSpec([FRAMES, None, None, 3], tf.uint8), tf.TensorSpec([num_draws(spec)], tf.float64)

    @tf.function(autograph=False, input_signature=signature)
    def make(frames: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        read = lambda video, numbers, window, finish: cut(frames, window, finish)  # noqa: E731
        return clips.train_clip(read, 0, *tf.unstack(tf.shape(frames, tf.int64)[:3]), spec, draws)

    return make


def file_readers() -> dict[str, Callable[[Path, np.random.Generator], np.ndarray]]:
    """Returns {package: reader of 32 frames, stride 2, of a video file from a random frame on}, on one thread."""

    def numbers(count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(count - FRAMES * STRIDE) + STRIDE * np.arange(FRAMES)

    def with_pyav(path: Path, rng: np.random.Generator) -> np.ndarray:
        frames = [frame.image for frame in decode.iterate_frames(path)]
        return np.stack(frames)[numbers(len(frames), rng)]

    readers = {"PyAV": with_pyav}
    try:
        decord = importlib.import_module("decord")

        def with_decord(path: Path, rng: np.random.Generator) -> np.ndarray:
            reader = decord.VideoReader(str(path), num_threads=1)
            return reader.get_batch(numbers(len(reader), rng)).asnumpy()

        readers[f"decord {decord.__version__}"] = with_decord
    except (ImportError, OSError) as error:
        print(f"decord is skipped: {reason(error)}")
    try:
        torchcodec = importlib.import_module("torchcodec")
        decoders = importlib.import_module("torchcodec.decoders")
        importlib.import_module("torch").set_num_threads(1)

        def with_torchcodec(path: Path, rng: np.random.Generator) -> np.ndarray:
            reader = decoders.VideoDecoder(
                str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate"
            )
            return reader.get_frames_at(numbers(len(reader), rng).tolist()).data.numpy()

        readers[f"torchcodec {torchcodec.__version__.partition('+')[0]}"] = with_torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec is skipped: {reason(error)}")
    return readers


def reason(error: Exception) -> str:
    """Returns the first line of an error that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def repeat(make: Callable[[int], object], batch: int) -> Iterator:
    """Calls `make(i)` for i = 0, 1, ..., `batch` times per step."""
    i = 0
    while True:
        for _ in range(batch):
            make(i)
            i += 1
        yield


def settled() -> float:
    """Waits until nothing runs in the background, and returns the process's CPU time."""
    while True:
        before = time.process_time()
        time.sleep(0.05)
        if time.process_time() - before < 0.002:
            return time.process_time()


def first_batches(split: RecordSplit) -> None:
    """Prints the seconds to the first batch of a split as long as Kinetics-400's, with our videos repeated."""
    times = -(-FULL_SPLIT // split.num_videos)
    per_video = ("video_id", "num_frames", "fps", "height", "width", "first_chunk", "num_chunks")
    long = {field: np.tile(getattr(split, field), times)[:FULL_SPLIT] for field in per_video}
    labels = {head: np.tile(ids, times)[:FULL_SPLIT] for head, ids in split.labels.items()}
    long_split = dataclasses.replace(split, labels=labels, **long)
    spec = pipeline.ClipSpec(num_frames=FRAMES, image_size=(CROP, CROP), stride=STRIDE, short_side=SHORT)
    found: dict[int, list[float]] = {}
    for _ in range(4):
        for step in (0, 1_000, 900_000):
            start = time.perf_counter()
            with pipeline.train_batches(long_split, spec, 8, seed=0, start_step=step) as batches:
                next(batches)
                found.setdefault(step, []).append(time.perf_counter() - start)
    print(f"\nSeconds to the first batch of 8 clips, {FULL_SPLIT:,} videos (the first round warms up):")
    for step, seconds in found.items():
        print(f"  from step {step:>7,}: {statistics.median(seconds[1:]):.2f}")


def build_costs(paths: list[Path]) -> None:
    """Prints how a worker of the builder spends its time."""
    spent = {"decode": 0.0, "encode": 0.0, "all": 0.0}
    for path in paths[:8]:
        start = time.process_time()
        frames = [frame.image for frame in decode.iterate_frames(path, short_side=SHORT)]
        spent["decode"] += time.process_time() - start
        start = time.process_time()
        for image in frames:
            encode.encode_jpeg(image, 85)
        spent["encode"] += time.process_time() - start
        start = time.process_time()
        encode.encode_file(encode.FileTask(path, [(None, None)], encode.EncodeOptions(SHORT, 85)))
        spent["all"] += time.process_time() - start
    share = (spent["decode"] + spent["encode"]) / spent["all"]
    ms = {part: 1e3 * seconds / len(paths[:8]) for part, seconds in spent.items()}
    print(
        f"\nBuilder, one core, ms per video: decode {ms['decode']:.0f}, JPEG {ms['encode']:.0f}, a worker's whole task "
        f"{ms['all']:.0f} ({share:.0%} decode and JPEG)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="256x340", help="height x width of the videos")
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split, paths, seconds = make_data(Path(folder), args)
        per_frame = split.chunk_length.sum() / split.num_frames.sum()
        print(
            f"{args.videos} videos of {args.size}, {args.seconds} s, {per_frame / 1e3:.1f} KB per stored frame; built "
            f"in {seconds:.1f} s. Training clips of {FRAMES} x {CROP} x {CROP}, CPU time, medians of {args.rounds}:"
        )
        ways = feeds(split, paths, Path(folder), args.batch)
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            for way, batches in ways.items():
                start = settled()
                for _ in range(3):
                    next(batches)
                settled()  # prefetched clips count for the way that made them
                if number:  # the first is a warm-up
                    spent[way].append((time.process_time() - start) / (3 * args.batch))
        ours, device = (statistics.median(spent[way]) for way in ("ours, recipe", "ours, device resizes"))
        print(f"{'':22} {'ms per clip':>11} {'clips/s/core':>13} {'times ours':>11} {'times device':>13}")
        for way, times in spent.items():
            cost = statistics.median(times)
            print(f"{way:22} {1e3 * cost:11.1f} {1 / cost:13.1f} {cost / ours:11.2f} {cost / device:13.2f}")
        first_batches(split)
        build_costs(paths)


if __name__ == "__main__":
    main()
