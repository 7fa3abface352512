"""Verification: sound records pass; every kind of damage is reported with its location."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.helpers.sequences import flip_bit, numbered_frames, sequence, write_shards
from vivit_jax.data import verify
from vivit_jax.data.host_tf import tf
from vivit_jax.data.index import main as index_main
from vivit_jax.data.records.split import list_shards, open_split, record_positions


def problems(folder):
    return [p for report in verify.verify(folder, threads=2, progress=False) for p in report.problems]


@pytest.fixture
def copy(tiny_records, tmp_path):
    return shutil.copytree(tiny_records, tmp_path / "records")


def rewrite(split, number, change):
    """Rewrites the shard with one changed record, and the index to match."""
    path = split.shard_paths[int(split.chunk_shard[number])]
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    example = tf.train.Example.FromString(records[number])
    change(example.features.feature)
    records[number] = example.SerializeToString()
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    positions = record_positions(path)
    split.chunk_offset[:], split.chunk_length[:] = positions[:, 0], positions[:, 1]
    split.chunk_checksum[:] = positions[:, 2].astype(np.uint32)
    split.save()


def test_sound_records(tiny_records, capsys):
    verify.main([str(tiny_records)])
    out = capsys.readouterr().out
    train = open_split(tiny_records, "train")
    line = next(line.split() for line in out.splitlines() if line.startswith("train "))
    assert line[1:4] == ["48", str(len(train.chunk_offset)), f"{train.num_frames.sum():,}"]
    assert "all records are sound" in out


@pytest.mark.parametrize(("where", "part"), [("data", "checksum does not fit"), ("length", "its length is")])
def test_flipped_bits(copy, where, part, capsys):
    split = open_split(copy, "train")
    offset = int(split.chunk_offset[9])
    flip_bit(copy / split.shards[0], offset + (3 if where == "length" else 700))
    with pytest.raises(SystemExit) as caught:
        verify.main([str(copy)])
    assert caught.value.code == 1
    assert f"{split.shards[0]}, record 9 at byte {offset}: " in (out := capsys.readouterr().out)
    assert part in out
    assert all("record 9 " in line for line in out.splitlines() if "tfrecord" in line), "the others are sound"


def test_wrong_contents_with_right_checksums(copy):
    def set_chunk(features):
        features["chunk"].int64_list.value[:] = [5]

    def set_label(features):
        features["label/noun"].int64_list.value[:] = [9 - features["label/noun"].int64_list.value[0]]

    def break_jpeg(features):
        jpeg = features["frames"].bytes_list.value[3]
        features["frames"].bytes_list.value[3] = jpeg[: len(jpeg) // 2]

    def drop_frame(features):
        del features["frames"].bytes_list.value[2]

    def resize(features):
        features["frames"].bytes_list.value[:] = [
            *features["frames"].bytes_list.value[:-1],
            *numbered_frames([1], 32, 48),
        ]

    damages = [
        (set_chunk, "chunk is [5], [0] in the index"),
        (set_label, "label/noun is ["),
        (break_jpeg, "frame 3 is no readable JPEG"),
        (drop_frame, "frames, "),
        (resize, "is 32 x 48, 64 x 64 (height x width) in the index"),
    ]
    numbers = open_split(copy, "validation").first_chunk.tolist()  # the record with which each video begins
    for number, (change, _) in zip(numbers, damages, strict=False):
        rewrite(open_split(copy, "validation"), number, change)
    reasons = problems(copy)
    assert len(reasons) == len(damages), reasons
    for number, reason, (_, part) in zip(numbers[: len(damages)], reasons, damages, strict=True):
        assert part in reason
        assert f"record {number} at byte" in reason


def test_totals_labels_and_class_names(copy):
    split = open_split(copy, "validation")
    split.labels["verb"][3] = 8
    split.save()
    reasons = problems(copy)
    assert any(f"label 'verb' of video {split.video_id[3]} is 8, outside 0 to 7" in reason for reason in reasons)
    split.labels["verb"][3] = 0
    split.save()
    summary = json.loads((copy / "summary.json").read_text())
    summary["splits"]["train"]["frames"] += 1
    (copy / "summary.json").write_text(json.dumps(summary))
    assert any("index_train.npz has" in reason and "summary.json states" in reason for reason in problems(copy))
    (copy / "index_train.npz").unlink()
    assert any("shards of split 'train' have no index" in reason for reason in problems(copy))
    (copy / list_shards(copy)["validation"][0]).write_bytes(b"")
    assert any("split 'validation' cannot be opened" in reason for reason in problems(copy))


def test_sequences(tmp_path):
    frames = numbered_frames(range(5))
    records = [
        sequence(frames, [0, 10, 20, 30, 40], clip__label__index=0),
        sequence(frames, [0, 10, 10, 30, 40], clip__label__index=0),
        sequence([], [], clip__label__index=0),
        sequence([*frames[:4], frames[4][:-60]], clip__label__index=1),
        sequence(frames, [0, 10], clip__label__index=1),
    ]
    path = write_shards(tmp_path, "train", records, 1)[0]
    index_main([str(tmp_path)])
    (report,) = verify.verify(tmp_path, progress=False)
    assert (report.videos, report.left_out, len(report.problems)) == (4, 1, 3)
    positions = record_positions(path)[:, 0]
    for problem, (record, part) in zip(
        report.problems,
        ((1, "time of frame 2 is not after"), (3, "frame 4 is no readable JPEG"), (4, "2 times for 5 frames")),
        strict=True,
    ):
        assert f"record {record} at byte {positions[record]}: " in problem
        assert part in problem


def test_folder_without_records(tmp_path):
    with pytest.raises(SystemExit, match=r"no index of records .*vivit_jax\.data\.index"):
        verify.main([str(tmp_path)])


def test_folder_whose_name_is_not_utf8(tiny_records, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff:%03d")
    shutil.copytree(tiny_records, folder)
    assert problems(folder) == []
