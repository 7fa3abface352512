"""Data sets in a bucket: TensorFlow's in-memory file system (ram://) behind the interface of gs://.

`etils.epath` does not know ram://; the fixture tells it, so that the very class and the very file system calls (epath's
for TensorFlow) run that run for gs://. It lives in one process: so do these builds (no workers). What a bucket does
otherwise than this (credentials, latency, renaming by copying) is not tested here.
"""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from etils.epath import gpath, register

from tests.helpers.digits import build_digits
from tests.helpers.sequences import numbered_frames, sequence, write_shards
from tests.helpers.videos import numbered_video, read_video
from vivit_jax.data import build, pipeline, verify
from vivit_jax.data.build import records, shards
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.index import main as index_main
from vivit_jax.data.records import scan
from vivit_jax.data.records.split import BadIndexError, NoRecordsError, list_shards, open_split
from vivit_jax.data.selection import sampling
from vivit_jax.data.video import decode
from vivit_jax.utils import storage

SIZES = {"train": 10, "validation": 6}
SPEC = sampling.ClipSpec(4, (48, 48), random_crop=True, flip_probability=0.5)


@pytest.fixture(scope="module", autouse=True)
def ram():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "ram://"))
        patch.setattr(gpath, "_URI_SCHEMES", gpath._URI_SCHEMES | {"ram"})
        patch.setitem(gpath._URI_MAP_ROOT, "ram://", "/ram/")
        patch.setitem(gpath._PREFIX_TO_BACKEND, "ram", gpath._PREFIX_TO_BACKEND["gs"])
        patch.setitem(register._URI_PREFIXES_TO_CLS, "ram://", gpath.PosixGPath)
        yield "ram://bucket"


@pytest.fixture(scope="module")
def local_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    build_digits(folder, **SIZES, num_workers=0)
    return folder


@pytest.fixture(scope="module")
def bucket_data(ram):
    build_digits(f"{ram}/data", **SIZES, num_workers=0)
    return f"{ram}/data"


def test_build_in_bucket_equals_local_build(local_data, bucket_data):
    local, remote = (build.records_folder("moving_digits", folder) for folder in (local_data, bucket_data))
    assert str(remote) == "ram://bucket/data/moving_digits/1.0.0"
    assert storage.names(remote) == storage.names(local)
    for name in storage.names(local):
        if ".tfrecord" in name or (name.endswith((".csv", ".json")) and name != "dataset_info.json"):
            assert (remote / name).read_bytes() == (local / name).read_bytes(), name
    info = [json.loads((folder / "dataset_info.json").read_text())["splits"] for folder in (local, remote)]
    assert info[0] == info[1], "sizes and counts of TFDS"
    assert [name for name in storage.names(f"{bucket_data}/moving_digits") if "partial" in name] == []
    assert storage.names(f"{bucket_data}/moving_digits/videos") == storage.names(f"{local_data}/moving_digits/videos")


def test_batches_from_bucket_equal_local_batches(local_data, bucket_data):
    options = PipelineOptions(threads=1)
    for name, make in (
        ("train", lambda split: pipeline.train_batches(split, SPEC, 5, 1, options=options)),
        (
            "validation",
            lambda split: pipeline.eval_batches(split, SPEC, 4, 2, 1, options=dataclasses.replace(options, cache=True)),
        ),
    ):
        splits = [
            open_split(build.records_folder("moving_digits", folder), name) for folder in (local_data, bucket_data)
        ]
        for _, local, remote in zip(range(2), *(make(split) for split in splits), strict=False):
            np.testing.assert_array_equal(local["video"], remote["video"])
            np.testing.assert_array_equal(local["label"]["verb"], remote["label"]["verb"])
            assert remote["mask"].max() == 1


def test_bucket_records_are_scanned_and_verified(local_data, bucket_data):
    folder = build.records_folder("moving_digits", bucket_data)
    for split in scan.scan(folder):
        written = open_split(folder, split.name)
        np.testing.assert_array_equal(split.chunk_checksum, written.chunk_checksum)
        np.testing.assert_array_equal(split.chunk_offset, written.chunk_offset)
    reports = verify.verify(folder, 1, progress=False)
    assert [report.problems for report in reports] == [[], []]
    assert sum(report.videos for report in reports) == 16
    shard = folder / list_shards(folder)["train"][0]
    sound = shard.read_bytes()
    try:
        shard.write_bytes(sound[:-1])
        with pytest.raises(BadIndexError, match="an incomplete copy"):
            open_split(folder, "train")
        shard.unlink()
        with pytest.raises(NoRecordsError, match="1 of 1 shards are missing, first ram://bucket/data"):
            open_split(folder, "train")
    finally:
        shard.write_bytes(sound)


def test_interrupted_bucket_build_continues(bucket_data, monkeypatch):
    files = (f"{bucket_data}/moving_digits/videos", f"{bucket_data}/moving_digits/annotations", "ram://bucket/again")

    def make():
        return build.build("moving_digits", *files, build.BuildOptions(num_workers=0, progress=False))

    with monkeypatch.context() as patch:
        patch.setattr(records.RecordsBuild, "_publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make()
    folder = build.records_folder("moving_digits", "ram://bucket/again")
    assert not (folder / "summary.json").exists()
    (folder / "moving_digits-train.tfrecord-00000-of-00009").write_bytes(b"of a build of another form")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", lambda *arguments, **options: pytest.fail("a whole shard is not made again"))
        assert make() == folder
    assert open_split(folder, "train").num_videos == 10
    assert len(list_shards(folder)["train"]) == 1


def test_custom_data_set_in_bucket(ram, tmp_path):
    videos = storage.path(f"{ram}/own")
    for name, frames in (("train/a/x.mp4", 20), ("train/b/deep/y.mp4", 24), ("val/a/z.mp4", 18)):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        storage.copy(numbered_video(tmp_path / "v.mp4", frames, height=32, width=32), videos / name)
    folder = build.build(
        "mine", videos, None, f"{ram}/data", build.BuildOptions(num_workers=0, progress=False, kind="folder")
    )
    split = open_split(folder, "train")
    assert split.video_id.tolist() == ["train/a/x.mp4", "train/b/deep/y.mp4"]
    assert split.num_frames.tolist() == [20, 24]
    # A CSV beside the videos, which names files under --videos, elsewhere in the bucket, and one that is not there.
    table = storage.path(f"{ram}/tables/labels.csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = ["train/a/x.mp4,one", f"{ram}/own/val/a/z.mp4,two", "nowhere.mp4,one"]
    storage.write(table, "path,label,split\n" + "".join(f"{row},train\n" for row in rows))
    folder = build.build(
        "table", videos, table, tmp_path, build.BuildOptions(num_workers=0, progress=False, kind="csv")
    )
    assert open_split(folder, "train").num_frames.tolist() == [20, 18]
    assert "nowhere.mp4,,,no such video" in (folder / "rejects.csv").read_text()


def test_videos_are_decoded_from_bucket(ram, tmp_path):
    path = numbered_video(tmp_path / "v.mp4", 12)
    target = storage.path(f"{ram}/v.mp4")
    storage.copy(path, target)
    np.testing.assert_array_equal(read_video(target).frames, read_video(path).frames)
    spec = sampling.ClipSpec(4, (48, 48))
    np.testing.assert_array_equal(pipeline.views_from_file(f"{ram}/v.mp4", spec), pipeline.views_from_file(path, spec))
    storage.path(f"{ram}/empty.mp4").write_bytes(b"")
    for name, message in (
        ("empty.mp4", "the file is empty"),
        ("none.mp4", "no such file"),
        ("data", "a folder, not a file"),
    ):
        (storage.path(ram) / "data").mkdir(exist_ok=True)
        with pytest.raises(decode.VideoError, match=f"ram://bucket/{name}: {message}"):
            next(decode.iterate_frames(f"{ram}/{name}"))


def test_dmvr_records_in_bucket(ram, tmp_path):
    records = [sequence(numbered_frames(range(4 * i, 4 * i + 4)), clip__label__index=i) for i in range(3)]
    target = storage.path(f"{ram}/dmvr")
    target.mkdir()
    for path in write_shards(tmp_path, "train", records, shards=1):
        storage.copy(path, target / path.name)
    index_main([f"{ram}/dmvr", f"--out={tmp_path}/out"])
    split = open_split(tmp_path / "out", "train")
    assert split.shard_paths == [f"{ram}/dmvr/train-00000-of-00001"]
    batch = next(pipeline.eval_batches(split, sampling.ClipSpec(2, (16, 16)), 3, options=PipelineOptions(threads=1)))
    assert batch["mask"].tolist() == [1, 1, 1]


def test_gs_paths_use_epath():
    """Without asking it for anything: what a gs:// path becomes, and that it never becomes one of this disk."""
    path = storage.path("gs://bucket/folder") / "file.mp4"
    assert isinstance(path, epath.Path)
    assert str(path) == "gs://bucket/folder/file.mp4"
    assert type(path._backend) is type(storage.path("ram://bucket/x")._backend), "TensorFlow's file systems"
    assert str(storage.absolute("gs://bucket/x")) == "gs://bucket/x"
    assert str(storage.under("gs://bucket", "gs://other/x")) == "gs://other/x"
    assert str(storage.under("gs://bucket", "/on/disk.mp4")) == "/on/disk.mp4"
    assert str(build.records_folder("kinetics400", "gs://bucket/data")) == "gs://bucket/data/kinetics400/1.0.0"
    with pytest.raises(ValueError, match=r"ftp://x/y: .* is not a known kind of storage; use gs://"):
        storage.path("ftp://x/y")
