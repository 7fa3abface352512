"""Builds: the right frames in the records, rejects, interruption, the command, the index."""

import csv
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.videos import bad_files, draw_number, numbered_video, read_number
from vivit_jax.data import annotations, build, catalog, paths, workers
from vivit_jax.data.build.__main__ import main as build_main
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader, scan
from vivit_jax.data.records.split import (
    EmptySplitError,
    NoRecordsError,
    RecordSplit,
    list_shards,
    open_split,
    record_positions,
)
from vivit_jax.data.video import encode
from vivit_jax.utils import storage

# Name of the video file, start and end of the segment in seconds, its frames at 25 frames per second.
SEGMENTS = [("a", 0, 2, range(50)), ("b", 1, 3, range(25, 75)), ("c", 0, 4, range(33)), ("d", 0, 1, range(16))]
LENGTHS = {"a": 50, "b": 100, "c": 33, "d": 16}


def kinetics_folder(folder, extra=()):
    """Writes numbered videos and annotations of their segments, in the official layout of Kinetics."""
    rows = [(name, start, end) for name, start, end, _ in SEGMENTS] + [(name, 0, 2) for name in extra]
    lines = ["label,youtube_id,time_start,time_end,split"]
    lines += [f"label {i % 3},{name},{start},{end},train" for i, (name, start, end) in enumerate(rows)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "train.csv").write_text("\n".join(lines) + "\n")
    for name, length in LENGTHS.items():
        numbered_video(folder / "videos" / f"{name}.mp4", length)
    return folder / "videos", folder / "annotations"


def frames_of(split, video):
    numbers = tf.range(int(split.num_frames[video]), dtype=tf.int64)
    return tf.function(reader.record_reader(split), autograph=False)(tf.constant(video, tf.int64), numbers).numpy()


def test_frames_and_rejects(tmp_path):
    bad = bad_files(tmp_path / "bad")
    videos, folder = kinetics_folder(tmp_path, [*bad, "absent"])
    for path in bad.values():
        path.rename(videos / path.name)
    records = build.build(
        "kinetics400", videos, folder, tmp_path / "out", build.BuildOptions(num_workers=2, progress=False)
    )
    split = open_split(records, "train")
    assert split.video_id.tolist() == [name for name, *_ in SEGMENTS]
    assert split.heads == {"label": 3}
    assert split.labels["label"].tolist() == [0, 1, 2, 0]
    for video, (_, _, _, numbers) in enumerate(SEGMENTS):
        frames = frames_of(split, video)
        assert [read_number(frame) for frame in frames] == list(numbers)
    assert split.num_chunks.tolist() == [4, 4, 3, 1]
    with open(records / "rejects.csv", newline="") as file:
        rejects = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    assert set(rejects) == {*bad, "absent"}
    assert "empty" in rejects["empty"]
    assert "no video stream" in rejects["audio"]
    assert rejects["absent"] == "no such video in the videos' folder (or several of this name)"
    summary = json.loads((records / "summary.json").read_text())
    train = summary["splits"]["train"]
    assert (train["videos"], train["rejects"], train["frames"], train["published"]) == (4, 7, 149, 246_534)
    assert train["classes"]["label"] == {"label 0": 2, "label 1": 1, "label 2": 1}
    assert train["fps"] == {"25": 4}
    assert train["bytes"] == split.chunk_length.sum()


def test_segments_of_one_file_are_decoded_once(tmp_path, monkeypatch):
    """EPIC-Kitchens: several, also overlapping segments of one long video."""
    path = numbered_video(tmp_path / "P01" / "videos" / "P01_01.MP4", 100, fps=25)
    opened = []
    original = encode.decode.iterate_frames
    monkeypatch.setattr(encode.decode, "iterate_frames", lambda *a: opened.append(a) or original(*a))
    task = encode.FileTask(path, [(0.0, 1.0), (0.5, 2.0), (3.0, 9.0), (8.0, 9.0)], encode.EncodeOptions(32, 90))
    *segments, late = encode.encode_file(task)
    assert len(opened) == 1
    for segment, numbers in zip(segments, (range(25), range(13, 50), range(75, 100)), strict=True):
        images = [tf.io.decode_jpeg(segment.jpegs[i]).numpy() for i in segment.frames]
        assert [read_number(image) for image in images] == list(numbers)
        assert (segment.height, segment.width, segment.fps) == (32, 32, 25)
    assert "no frames between 8 s and 9 s (it ends at 3.96 s)" in late


def test_long_videos_are_spooled_and_limited(tmp_path, monkeypatch):
    """The JPEGs of a file are not held in memory beyond a limit, and the file stays small enough to be sent."""
    path, options = numbered_video(tmp_path / "a.mp4", 100, fps=25), encode.EncodeOptions(None, 90)
    segments = [(None, None), (1.0, 2.0)]
    in_memory = encode.encode_file(encode.FileTask(path, segments, options))
    monkeypatch.setattr(encode, "_HELD", 5000)
    spooled = encode.encode_file(encode.FileTask(path, segments, options, tmp_path / "spool"))
    assert len(pickle.dumps(spooled)) < 12_000 < (tmp_path / "spool").stat().st_size
    for one, other in zip(in_memory, spooled, strict=True):
        assert [one.jpegs[i] for i in one.frames] == [other.jpegs[i] for i in other.frames]
    for change, problem in (({"max_seconds": 3.0}, "longer than 3 s"), ({"max_gb": 2e-5}, "more than 2e-05 GB")):
        task = encode.FileTask(path, [(None, None), (0.0, 0.5)], dataclasses.replace(options, **change))
        reason, sound = encode.encode_file(task)
        assert problem in reason
        assert len(sound.frames) == 13


def test_second_build_in_a_folder_says_so(tmp_path):
    videos, folder = kinetics_folder(tmp_path)
    (tmp_path / "out" / "kinetics400").mkdir(parents=True)
    # `flock` is of the opened file, so that this process can be the other one, too.
    busy = pytest.raises(ValueError, match=f"another build is at work in {tmp_path}/out/kinetics400")
    with storage.locked(tmp_path / "out" / "kinetics400", ValueError()), busy:
        build.build("kinetics400", videos, folder, tmp_path / "out", build.BuildOptions(num_workers=0))


def test_tfds_reads_the_folder(tiny_records):
    import tensorflow_datasets as tfds

    tfds_builder = tfds.builder_from_directory(str(tiny_records))
    split = open_split(tiny_records, "train")
    assert tfds_builder.info.splits["train"].num_examples == split.num_chunks.sum()
    example = next(iter(tfds_builder.as_dataset("train")))
    # TFDS decodes with libjpeg's fast transform, this package with the accurate one.
    np.testing.assert_allclose(example["frames"].numpy(), frames_of(split, 0)[:16], atol=8)
    assert tfds_builder.info.features["label"]["verb"].names == list(split.class_names["verb"])
    assert int(example["label"]["noun"]) == split.labels["noun"][0]


def test_serialisation_is_deterministic(tiny_records):
    """By default, protobuf orders the features of an example by a seed of the process."""
    shard = tiny_records / list_shards(tiny_records)["train"][0]
    for data in tf.data.TFRecordDataset(str(shard)).take(3).as_numpy_iterator():
        assert data == tf.train.Example.FromString(data).SerializeToString(deterministic=True)


def test_scanned_index_equals_written_index(tiny_records):
    for scanned in scan.scan(tiny_records):
        written = open_split(tiny_records, scanned.name)
        for field in dataclasses.fields(RecordSplit):
            first, second = getattr(written, field.name), getattr(scanned, field.name)
            if field.name == "labels":
                assert first.keys() == second.keys()
                first, second = np.stack([*first.values()]), np.stack([*second.values()])
            np.testing.assert_array_equal(np.asarray(first), np.asarray(second), err_msg=field.name)


def test_decoder_crash_rejects_its_file(tmp_path, monkeypatch):
    videos, folder = kinetics_folder(tmp_path)
    original = workers.ordered_map
    monkeypatch.setattr(workers, "ordered_map", lambda _, *rest: original("tests.data.test_workers:dies_on_b", *rest))
    records = build.build(
        "kinetics400", videos, folder, tmp_path / "out", build.BuildOptions(num_workers=1, progress=False)
    )
    assert open_split(records, "train").video_id.tolist() == ["a", "c", "d"]
    assert "the decoder crashed: the worker process died (exit status 3)" in (records / "rejects.csv").read_text()


def test_existing_records_are_not_rebuilt(tiny, tiny_records, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ordered_map", None)
    source = tiny / "moving_digits"
    files = "moving_digits", source / "videos", source / "annotations"
    assert build.prepare("moving_digits", tiny) == tiny_records
    assert build.build(*files, tiny) == tiny_records
    for changes, difference in (
        ({"quality": 50}, "quality 85 (50"),
        ({"max_seconds": 9}, "max_seconds 21600.0 (9"),
        ({"max_gb": 1}, "max_gb 32.0 (1"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"records with {difference} requested)")):
            build.build(*files, tiny, build.BuildOptions(**changes))
    # An older version of this program did not store all options.
    older = paths.records_folder("moving_digits", tmp_path)
    older.mkdir(parents=True)
    with pytest.raises(ValueError, match=re.escape(f"{older} exists, but is incomplete (no summary.json): delete it")):
        build.build(*files, tmp_path)
    summary = json.loads((tiny_records / paths.SUMMARY_FILE).read_text())
    summary = {key: value for key, value in summary.items() if key not in ("kind", "columns", "max_seconds", "max_gb")}
    (older / paths.SUMMARY_FILE).write_text(json.dumps(summary))
    assert build.build(*files, tmp_path, build.BuildOptions(max_gb=1)) == older


@pytest.mark.parametrize(("changes", "found"), [({}, "2 or earlier"), ({"version": 4}, "4")])
def test_records_of_another_version_are_refused(tiny_records, tmp_path, changes, found):
    summary = json.loads((tiny_records / paths.SUMMARY_FILE).read_text())
    assert summary.pop("version") == catalog.get("moving_digits").version == 3
    folder = paths.records_folder("moving_digits", tmp_path)
    folder.mkdir(parents=True)
    (folder / paths.SUMMARY_FILE).write_text(json.dumps({**summary, **changes}))
    with pytest.raises(ValueError, match=f"version {found} of moving_digits, .* version 3: delete {folder.parent} to"):
        build.prepare("moving_digits", tmp_path)


def test_custom_data_set_with_all_flags(tmp_path, capsys):
    """A folder per class, built by the command; `prepare` finds the records by their name."""
    for split, name, count in (("train", "a", 30), ("train", "b", 40), ("val", "a", 10)):
        numbered_video(tmp_path / "mine" / split / f"class_{name}" / f"{split}_{name}.mp4", count, height=64, width=96)
    command = ["--dataset=folder", f"--videos={tmp_path / 'mine'}", f"--out={tmp_path}", "--workers=0"]
    form = ["--fps=10", "--short_side=32", "--quality=70", "--splits=train"]
    with pytest.raises(SystemExit, match=r"--dataset=folder\|csv needs --name=NAME, .*: --dataset=folder, --name=None"):
        build_main(command)
    with pytest.raises(SystemExit, match="no split test; the annotations have train, validation"):
        build_main([*command, "--name=my_videos", "--splits=test"])
    build_main([*command, "--name=my_videos", *form])
    assert "train: 2 videos, 28 frames" in capsys.readouterr().out
    records = build.prepare("my_videos", tmp_path)
    split = open_split(records, "train")
    assert split.class_names == {"label": ["class_a", "class_b"]}
    assert (split.fps.tolist(), split.height.tolist(), split.width.tolist()) == ([10, 10], [32, 32], [48, 48])
    # At 25 frames per second, times 0.1 s apart are frames 0, 2.5, 5, 7.5, ...
    assert [read_number(frame) for frame in frames_of(split, 0)] == [5 * k // 2 for k in range(12)]
    summary = json.loads((records / "summary.json").read_text())
    assert (summary["fps"], summary["short_side"], summary["quality"]) == (10, 32, 70)
    assert (summary["splits"]["train"]["rows"], summary["splits"]["train"]["varying_fps"]) == (2, 0)
    build_main([*command, "--name=my_videos", *form])  # complete, and not repeated
    with pytest.raises(
        SystemExit, match=r"short_side 32 \(256 requested\); quality 70 \(85 requested\); fps 10.0 \(None requested\)"
    ):
        build_main([*command, "--name=my_videos"])
    with pytest.raises(SystemExit, match=r"split train \(validation requested too\)"):
        build_main([*command, "--name=my_videos", *form[:-1], "--splits=train,validation"])
    with pytest.raises(SystemExit, match="other data sets have none: --dataset=kinetics400, --name=x"):
        build_main(["--dataset=kinetics400", "--name=x", *command[1:]])
    with pytest.raises(SystemExit, match="kinetics400 has annotation files: give their folder"):
        build_main(["--dataset=kinetics400", *command[1:]])


def test_folders_of_frames(tmp_path, capsys):
    for number in (1, 2):
        folder = tmp_path / "mine" / "up" / str(number)
        folder.mkdir(parents=True)
        for frame in range(20):
            encode.Image.fromarray(draw_number(frame)).save(folder / f"{frame + 1:05d}.png")
    (tmp_path / "train.txt").write_text("up/1 20 7\nup/2 20 7\n")
    flags = [f"--videos={tmp_path / 'mine'}", "--workers=0"]
    with pytest.raises(SystemExit, match=r"up/\d is a folder of frames, without a frame rate: give it by --fps=N"):
        build_main(["--dataset=folder", "--name=a", f"--out={tmp_path}", *flags])
    build_main(["--dataset=folder", "--name=a", f"--out={tmp_path}", "--fps=12", *flags])
    build_main(
        ["--dataset=csv", "--name=b", f"--out={tmp_path}", "--fps=12", f"--annotations={tmp_path}/train.txt", *flags]
    )
    for name in "ab":
        split = open_split(build.records_folder(name, tmp_path), "train")
        assert (split.num_frames.tolist(), split.fps.tolist()) == ([20], [12])
        assert [read_number(frame) for frame in frames_of(split, 0)] == list(range(20))


def test_rejects_fail_the_command(tmp_path, capsys, caplog):
    """From half of the videos on; the class that is left without videos is named."""
    numbered_video(tmp_path / "v" / "a.mp4", 4)
    (tmp_path / "list.csv").write_text("path,label,split\na.mp4,walk,train\nb.mp4,run,train\n")
    command = ["--dataset=csv", f"--videos={tmp_path}/v", f"--annotations={tmp_path}/list.csv", "--workers=0"]
    with pytest.raises(SystemExit, match=r"1 of 2 videos \(50.0%\) are rejected, .*no such video.*--allow_rejects"):
        build_main([*command, "--name=a", f"--out={tmp_path}"])
    assert "1 of 2 videos (50.0%) rejected (see rejects.csv)" in capsys.readouterr().out.splitlines()[-1]
    assert "1 classes of label have no video in split train: run" in caplog.text
    build_main([*command, "--name=a", f"--out={tmp_path}", "--allow_rejects"])


def test_a_full_disk_ends_in_one_message(monkeypatch):
    def fail(*args):
        raise tf.errors.ResourceExhaustedError(None, None, problem)

    monkeypatch.setattr("vivit_jax.data.build.__main__.build", fail)
    problem = "/out/x.tfrecord; No space left on device"
    with pytest.raises(SystemExit, match=f"error: {problem}"):
        build_main(["--dataset=kinetics400", "--videos=v", "--annotations=a", "--out=out"])


def test_names_that_are_not_utf_8(tmp_path):
    """Also where the terminal knows ASCII only."""
    name = b"caf\xe9/\xff.mp4".decode("utf-8", "surrogateescape")
    for path in (name, "\u65e5\u672c/x.mp4"):
        numbered_video(tmp_path / "x.mp4", 4)
        (tmp_path / "mine" / path).parent.mkdir(parents=True)
        (tmp_path / "x.mp4").rename(tmp_path / "mine" / path)
    (tmp_path / "mine" / "caf\udce9" / "bad\udcff.mp4").write_bytes(b"x")
    out = tmp_path / "records\udcff"
    flags = ["--dataset=folder", "--name=mine", f"--videos={tmp_path / 'mine'}", f"--out={out}", "--workers=0"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "vivit_jax.data.build", *flags]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"1 of 3 videos (33.3%) rejected" in done.stdout
    assert "bad\\udcff.mp4" in (out / "mine/1.0.0/rejects.csv").read_text()
    assert json.loads((out / "mine/1.0.0/class_names.json").read_text())["label"] == ["caf\\xe9", "\u65e5\u672c"]


def test_prepare_without_data(tmp_path):
    with pytest.raises(annotations.MissingDataError) as caught:
        build.prepare("kinetics400", tmp_path)
    for part in ("kinetics400/1.0.0", "kinetics400/videos", "kinetics400/annotations", "train.csv", "cvdfoundation"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="data set 'nothing' is not in the catalog"):
        build.prepare("nothing", tmp_path)


def test_index_errors(tiny_records, tmp_path):
    with pytest.raises(NoRecordsError, match=r"no records in .*vivit_jax.data.build"):
        open_split(tmp_path, "train")
    with pytest.raises(NoRecordsError, match="no split 'test'; there are train, validation"):
        open_split(tiny_records, "test")
    with pytest.raises(NoRecordsError, match="no records in"):
        scan.scan(tmp_path)
    shard = list_shards(tiny_records)["validation"][0]
    (tmp_path / shard).write_bytes((tiny_records / shard).read_bytes()[:-5])
    with pytest.raises(NoRecordsError, match=r"no index; make it: python -m vivit_jax.data.index"):
        open_split(tmp_path, "validation")
    with pytest.raises(ValueError, match="cut short: record"):
        record_positions(tmp_path / shard)


def test_empty_split(tmp_path):
    videos, folder = kinetics_folder(tmp_path)
    (folder / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nlabel 0,gone,0,1,val\n")
    records = build.build(
        "kinetics400", videos, folder, tmp_path / "out", build.BuildOptions(num_workers=0, progress=False)
    )
    assert open_split(records, "train").num_videos == 4
    with pytest.raises(EmptySplitError, match=r"'validation' has no videos; see rejects.csv"):
        open_split(records, "validation")
