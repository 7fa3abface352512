"""The index file: stale or unreadable ones are errors that name the way out."""

import contextlib
import shutil

import numpy as np
import pytest

from vivit_jax.data.index import main as index_main
from vivit_jax.data.records.split import BadIndexError, NoRecordsError, list_shards, open_split

REBUILD = r"rebuild the index: python -m vivit_jax\.data\.index"


@pytest.fixture
def copy(tiny_records, tmp_path):
    return shutil.copytree(tiny_records, tmp_path / "records")


def change(path, **arrays):
    with np.load(path) as stored:
        kept = {key: stored[key] for key in stored.files}
    np.savez(path, **{key: value for key, value in (kept | arrays).items() if value is not None})


def test_shard_sizes_follow_from_index(tiny_records):
    for name in ("train", "validation"):
        split = open_split(tiny_records, name)
        assert split.shard_bytes.tolist() == [(tiny_records / shard).stat().st_size for shard in split.shards]


def test_hidden_files_are_no_shards(copy):
    """macOS writes `._NAME` beside each file on some disks."""
    shards = list_shards(copy)
    for name in shards["train"]:
        (copy / f"._{name}").write_bytes(b"")
    assert list_shards(copy) == shards


def test_stale_or_unreadable_index_errors(copy):
    path = copy / "index_train.npz"
    shard = copy / open_split(copy, "train").shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(BadIndexError, match=rf"{len(whole) - 1:,} bytes, {len(whole):,} when .*{REBUILD}"):
        open_split(copy, "train")
    shard.unlink()
    with pytest.raises(NoRecordsError, match=f"1 of . shards are missing, first .*{REBUILD}"):
        open_split(copy, "train")
    shard.write_bytes(whole)
    sound = path.read_bytes()
    for broken, message in ((sound[: len(sound) // 2], "unreadable"), (b"", "unreadable"), (b"text", "unreadable")):
        path.write_bytes(broken)
        with pytest.raises(BadIndexError, match=f"index_train.npz: {message}.*{REBUILD}"):
            open_split(copy, "train")
    for offset in range(0, 400, 3):  # flipped bits in the headers of an archive and of an array
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 4]) + sound[offset + 1 :])
        with contextlib.suppress(BadIndexError):  # nothing else
            open_split(copy, "train")
    path.write_bytes(sound)
    change(path, num_frames=None)
    with pytest.raises(BadIndexError, match=f"holds no array .*num_frames.*{REBUILD}"):
        open_split(copy, "train")
    path.write_bytes(sound)
    change(path, format=np.array(99))
    with pytest.raises(BadIndexError, match=r"has format 99, this version reads up to 3: update it"):
        open_split(copy, "train")
    path.write_bytes(sound)
    change(path, format=None, form=None)
    assert open_split(copy, "train").form == "chunks", "indexes of the first format are read"
    shutil.copy(copy / "index_train.npz", copy / "index_other.npz")
    (copy / "class_names.json").write_text("[1]")
    with pytest.raises(BadIndexError, match="must hold head -> list of class names"):
        open_split(copy, "train")
    (copy / "class_names.json").unlink()
    with pytest.raises(NoRecordsError, match=r"no class_names.json, so the heads"):
        open_split(copy, "train")


def test_contradictions_are_found_at_opening(copy):
    path = copy / "index_train.npz"
    with np.load(path) as stored:
        index = {key: stored[key] for key in stored.files}
    names = index["video_id"]

    def with_value(field, position, value):
        values = index[field].copy()
        values[position] = value
        return {field: values}

    of_videos = ("video_id", "num_frames", "fps", "height", "width", "first_chunk", "num_chunks")
    fields = (*of_videos, "label_noun", "label_verb")
    cases = [
        (with_value("label_verb", 3, 8), f"label 'verb' of video {names[3]} is 8, outside 0 to 7"),
        (with_value("label_noun", 3, -1), f"label 'noun' of video {names[3]} is -1, outside 0 to 9"),
        (with_value("num_frames", 3, 0), f"num_frames of video {names[3]} is 0"),
        (with_value("chunk_shard", 3, 7), "chunk_shard of record 3 is 7, outside 0 to 0"),
        (with_value("num_chunks", 47, 9), f"with records of another: {names[47]}"),
        ({"height": index["height"][1:]}, "47 values of height, 48 expected"),
        ({field: np.append(index[field], index[field][5]) for field in fields}, f"listed twice.*{names[5]}"),
        ({field: index[field][:-1] for field in fields}, "has 47 videos, .*/summary.json states 48"),
    ]
    for arrays, message in cases:
        change(path, **arrays)
        with pytest.raises(BadIndexError, match=f"index_train.npz.*{message}.*({REBUILD}|Copy both again)"):
            open_split(copy, "train")
        np.savez(path, **index)
    open_split(copy, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"splits": 3}', '{"splits": {"train": 3}}'])
def test_damaged_summary_is_found_at_opening(copy, text):
    (copy / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=f"{copy}/summary.json is damaged"):
        open_split(copy, "train")


def test_command_rebuilds_index(copy, capsys):
    before = open_split(copy, "train")
    (copy / "index_train.npz").unlink()
    index_main([str(copy)])
    assert "index_train.npz: 48 videos" in capsys.readouterr().out
    after = open_split(copy, "train")
    np.testing.assert_array_equal(before.chunk_checksum, after.chunk_checksum)
    data = bytearray((copy / after.shards[0]).read_bytes())
    data[int(after.chunk_offset[4]) + 100] ^= 8
    (copy / after.shards[0]).write_bytes(data)
    with pytest.raises(SystemExit, match="record 4 is corrupted: its checksum does not fit"):
        index_main([str(copy)])
