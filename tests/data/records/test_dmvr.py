"""Records of DMVR and Scenic: indexed in place, read unchanged."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.sequences import flip_bit, jpeg, numbered_frames, sequence, write_shards
from tests.helpers.videos import read_number
from vivit_jax.data import pipeline, verify
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.index import main as index_main
from vivit_jax.data.records import dmvr, reader, scan
from vivit_jax.data.records.dmvr import find_shards
from vivit_jax.data.records.split import open_split, record_positions
from vivit_jax.data.selection import sampling

NAMES = ["archery", "bowling", "catching"]
# First number shown, frames, height, width, class; the number identifies video and frame.
VIDEOS = [(0, 7, 64, 96, 2), (10, 40, 64, 96, 0), (60, 60, 96, 64, 1), (130, 16, 64, 96, 2), (150, 33, 80, 64, 0)]
SPEC = pipeline.ClipSpec(6, (64, 64), stride=3, short_side=64)


def records(videos=VIDEOS):
    return [
        sequence(
            numbered_frames(range(first, first + count), height, width),
            clip__label__index=label,
            clip__label__text=NAMES[label].encode(),
            clip__start__timestamp=2_000_000,
            clip__end__timestamp=2_000_000 + count * 100_000,
            video__filename=f"/videos/{first}.mp4".encode(),
        )
        for first, count, height, width, label in videos
    ]


def run(*arguments, capsys=None):
    index_main([str(argument) for argument in arguments])
    return capsys.readouterr().out if capsys else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`train` of five videos in two shards, `val` of two in one; indexed in place."""
    folder = tmp_path_factory.mktemp("k3")
    write_shards(folder, "kinetics400-train", records())
    write_shards(folder, "kinetics400-val", records(VIDEOS[1:3]), 1)
    index_main([str(folder)])
    return folder


def numbers_of(clip):
    return [read_number(frame) for frame in clip]


def test_index_describes_videos(folder):
    split = open_split(folder, "train")
    assert split.form == "sequence"
    assert split.shards == [f"kinetics400-train-0000{i}-of-00002" for i in range(2)]
    order = [0, 2, 4, 1, 3]  # round robin over the two shards
    assert split.video_id.tolist() == [f"/videos/{VIDEOS[i][0]}.mp4" for i in order]
    for values, column in ((split.num_frames, 1), (split.height, 2), (split.width, 3), (split.labels["label"], 4)):
        assert values.tolist() == [VIDEOS[i][column] for i in order]
    np.testing.assert_allclose(split.fps, 10, rtol=1e-5)
    assert split.class_names == {"label": NAMES}
    assert split.chunk_length.sum() == sum(len(record) for record in records())
    assert open_split(folder, "validation").num_videos == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["splits"]["train"]["classes"] == {"label": {"archery": 2, "bowling": 1, "catching": 2}}
    assert summary["splits"]["train"]["frames"] == 156
    assert summary["rejects"] == 0


@pytest.mark.parametrize("cache", [False, True])
def test_batches_hold_the_indexed_frames(folder, cache):
    split = open_split(folder, "train")
    firsts = {f"/videos/{first}.mp4": first for first, *_ in VIDEOS}
    seen, options = set(), PipelineOptions(cache=cache)
    with pipeline.train_batches(split, SPEC, 5, seed=0, options=options) as batches:
        for _ in range(8):
            batch = next(batches)
            assert batch["mask"].tolist() == [1] * 5
            for index, clip, label in zip(batch["index"], batch["video"], batch["label"]["label"], strict=True):
                shown = numbers_of(clip)
                first, length = firsts[split.video_id[index]], int(split.num_frames[index])
                start = shown[0] - first
                assert shown == [first + (start + 3 * i) % length for i in range(6)]
                assert label == split.labels["label"][index]
                seen.add((first, start))
    assert len(seen) > 12, "starts vary"
    with pipeline.eval_batches(split, SPEC, 5, temporal_views=3, spatial_views=1, options=options) as batches:
        (batch,) = batches
    for index, views in enumerate(batch["video"]):
        first, length = firsts[split.video_id[index]], int(split.num_frames[index])
        for i, clip in enumerate(views):
            assert numbers_of(clip) == (first + sampling.view_frames(length, SPEC, 3, i)).tolist()


def test_chunks_and_sequences_give_equal_clips(tiny_records, tmp_path):
    chunks = open_split(tiny_records, "validation")
    stored = list(tf.data.TFRecordDataset(chunks.shard_paths).as_numpy_iterator())
    features = [tf.train.Example.FromString(record).features.feature for record in stored]
    repacked = [
        sequence(
            [frame for part in features[first : first + count] for frame in part["frames"].bytes_list.value],
            clip__label__index=int(verb),
        )
        for first, count, verb in zip(chunks.first_chunk, chunks.num_chunks, chunks.labels["verb"], strict=True)
    ]
    write_shards(tmp_path, "validation.tfrecord", repacked, 1)
    run(tmp_path)
    split = open_split(tmp_path, "validation")
    spec = pipeline.ClipSpec(
        8, (48, 56), stride=3, short_side=60, scale_jitter=(0.9, 1.3), random_crop=True, flip_probability=0.5
    )
    for make in (
        lambda s: pipeline.train_batches(s, spec, 16, seed=3),
        lambda s: pipeline.eval_batches(s, spec, 16, 2, 3),
    ):
        with make(chunks) as first, make(split) as second:
            first, second = next(first), next(second)
        np.testing.assert_array_equal(first["video"], second["video"])
        np.testing.assert_array_equal(first["label"]["verb"], second["label"]["label"])


def test_index_in_another_folder(folder, tmp_path):
    run(folder, f"--out={tmp_path / 'index'}", "--split=train=*-train-*", "--split=held_out=*-val-*")
    split = open_split(tmp_path / "index", "held_out")
    assert split.shard_paths == [str(folder.resolve() / "kinetics400-val-00000-of-00001")]
    with pipeline.eval_batches(split, SPEC, 2) as batches:
        assert next(batches)["mask"].tolist() == [1, 1]


def test_concatenated_epic_labels(tmp_path, capsys):
    """[noun, 300 + verb] in one feature."""
    frames = numbered_frames(range(3))
    write_shards(tmp_path, "train", [sequence(frames, clip__label__index=[7, 396]),
                                     sequence(frames, clip__label__index=[300, 299])])  # fmt: skip
    (tmp_path / "verbs.csv").write_text("id,key,instances\n" + "".join(f"{i},verb {i},x\n" for i in range(97)))
    heads = ("--head=noun=clip/label/index:0:300", "--head=verb=clip/label/index:300:97")
    run(tmp_path, *heads, f"--class_names=verb={tmp_path / 'verbs.csv'}")
    split = open_split(tmp_path, "train")
    assert {head: ids.tolist() for head, ids in split.labels.items()} == {"noun": [7, 299], "verb": [96, 0]}
    assert split.heads == {"noun": 300, "verb": 97}
    assert split.class_names["verb"][96] == "verb 96"
    (tmp_path / "verbs.json").write_text('["verb 0"')
    with pytest.raises(SystemExit, match=r"verbs\.json, line 1: broken JSON"):
        run(tmp_path, *heads, f"--class_names=verb={tmp_path / 'verbs.json'}")
    with pytest.raises(SystemExit, match=r"holds \[7, 396\], of which one must be the class"):
        run(tmp_path)
    with pytest.raises(SystemExit, match=r"--head=verb=x:1: it must be NAME=FEATURE or NAME=FEATURE:FIRST:COUNT"):
        run(tmp_path, "--head=verb=x:1")


def test_heads_in_separate_features_and_text_only(tmp_path):
    frames = numbered_frames(range(2))
    write_shards(
        tmp_path,
        "train",
        [sequence(frames, clip__verb__index=i, clip__noun__string=name) for i, name in enumerate([b"tap", b"cup"])],
    )
    run(tmp_path, "--head=verb=clip/verb/index", "--head=noun=clip/noun/string")
    split = open_split(tmp_path, "train")
    assert split.class_names == {"verb": ["0", "1"], "noun": ["cup", "tap"]}
    assert split.labels["noun"].tolist() == [1, 0]
    with pytest.raises(
        SystemExit, match=r"no label in clip/label/index, clip/label/text, .*of clip/noun/string, clip/v"
    ):
        run(tmp_path)


def test_several_texts_are_no_label(tmp_path):
    frames = numbered_frames(range(2))
    write_shards(tmp_path, "train", [sequence(frames, clip__label__text=[b"tap", b"cup"])], 1)
    with pytest.raises(SystemExit, match=r"holds 2 texts, \['tap', 'cup'\], of which one must be the class"):
        run(tmp_path)
    write_shards(tmp_path, "train", [sequence(frames, clip__label__index=0, clip__label__text=[b"tap", b"cup"])], 1)
    with pytest.raises(SystemExit, match="no record holds one text for each number"):
        run(tmp_path, "--labels=text")


def test_labels_that_are_nowhere_are_an_error_early(tmp_path, monkeypatch):
    monkeypatch.setattr(dmvr, "CHECKED", 2)
    write_shards(tmp_path, "train", [sequence(numbered_frames(range(2)), x=1)] * 3, 1)
    with pytest.raises(SystemExit, match=r"first 2 records of 'train' .*no label in clip/label/index.* of x"):
        run(tmp_path)


def test_class_numbers_that_differ_between_files(tmp_path):
    """DMVR's generator numbers classes in the order of a set: training and test do not agree."""
    frames = numbered_frames(range(2))
    for base, numbers in (("train", [0, 1]), ("test", [1, 0])):
        write_shards(
            tmp_path,
            base,
            [
                sequence(frames, clip__label__index=number, clip__label__text=name)
                for number, name in zip(numbers, [b"jump", b"climb"], strict=True)
            ],
        )
    with pytest.raises(SystemExit, match=r"class [01] is '\w+' in a record, .*--labels=text"):
        run(tmp_path)
    run(tmp_path, "--labels=text")
    for name in ("train", "test"):
        split = open_split(tmp_path, name)
        assert (split.class_names["label"], split.labels["label"].tolist()) == (["climb", "jump"], [1, 0])


def test_unusable_records_are_listed(tmp_path, capsys):
    frames = numbered_frames(range(200, 204))
    grey = [jpeg(np.full((64, 96, 1), 30 * i, np.uint8)) for i in range(4)]
    broken = {
        "empty": sequence([], clip__label__index=0),
        "mixed": sequence([*frames, *numbered_frames([1], 32, 32)], clip__label__index=0),
        "not a jpeg": sequence([*frames[:2], b"<html>", frames[3]], clip__label__index=0),
        "no label": sequence(frames, x=1),
        "outside": sequence(frames, clip__label__index=-1),
        "flipped": sequence(frames, clip__label__index=0),
    }
    write_shards(
        tmp_path, "train", [sequence(frames, y=[1.5]), *broken.values(), sequence(grey, clip__label__index=0),
                            sequence(frames, clip__label__index=1)], 1,
    )  # fmt: skip
    path = tmp_path / "train-00000-of-00001"
    positions = record_positions(path)
    flip_bit(path, int(positions[6, 0]) + 500)
    out = run(tmp_path, capsys=capsys)
    assert "7 records cannot be used" in out
    with open(tmp_path / "rejects.csv", newline="") as file:
        rejects = list(csv.DictReader(file))
    assert [int(row["record"]) for row in rejects] == [0, 1, 2, 3, 4, 5, 6]
    assert [int(row["byte"]) for row in rejects] == positions[:7, 0].tolist()
    reasons = [row["reason"] for row in rejects]
    parts = [
        "no label in clip/label/index",
        "no frames",
        "several sizes, 32 x 32 to 64 x 96",
        "frame 2 is no readable JPEG",
        "no label in clip/label/index",
        "class -1 is outside 0 to 1",
        "checksum",
    ]
    for reason, part in zip(reasons, parts, strict=True):
        assert part in reason
    split = open_split(tmp_path, "train")
    assert split.labels["label"].tolist() == [0, 1]
    with pipeline.eval_batches(split, pipeline.ClipSpec(2, (64, 64)), 2) as batches:
        batch = next(batches)
    assert batch["mask"].tolist() == [1, 1]
    assert numbers_of(batch["video"][1, 0]) == [200, 201]
    assert np.abs(batch["video"][0, 0, 1].astype(int) - 30).max() <= 4, "grey frames become RGB"


def test_records_of_an_outage_are_read_again(tmp_path, monkeypatch):
    shard, away = write_shards(tmp_path, "train", records())[1], tmp_path / "away"

    def outage(*arguments, **options):
        shard.rename(away)
        yield from scan.read_all(*arguments, **options)

    monkeypatch.setattr(dmvr, "read_all", outage)
    monkeypatch.setattr(reader.time, "sleep", lambda seconds: away.rename(shard))
    run(tmp_path)
    assert open_split(tmp_path, "train").num_videos == len(VIDEOS)
    monkeypatch.setattr(reader.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match=r"train-00001-of-00002 cannot be read .*tried 5 times"):
        run(tmp_path)


def test_cache_masks_frames_of_unexpected_size(folder):
    split = open_split(folder, "train")
    same = np.full(5, 64, np.int32), np.full(5, 96, np.int32)
    wrong = (split.height != same[0]) | (split.width != same[1])
    split = dataclasses.replace(split, height=same[0], width=same[1])
    with pipeline.eval_batches(split, SPEC, 5, options=PipelineOptions(cache=True)) as batches:
        np.testing.assert_array_equal(next(batches)["mask"], ~wrong)


@pytest.mark.parametrize("part", ["length", "checksum of the length", "data", "checksum of the data"])
def test_records_corrupted_after_indexing_are_masked(tmp_path, part):
    path = write_shards(tmp_path, "train", records(), 1)[0]
    run(tmp_path)
    split = open_split(tmp_path, "train")
    offset, length = int(split.chunk_offset[2]), int(split.chunk_length[2])
    positions = {"length": 2, "checksum of the length": 9, "data": 3000, "checksum of the data": 12 + length}
    flip_bit(path, offset + positions[part])
    (report,) = verify.verify(tmp_path, progress=False)
    assert report.problems
    assert all(f"record 2 at byte {offset}: " in problem for problem in report.problems)
    # Read from disk; kept as JPEG.
    for cache in (False, True) if part == "data" else (False,):
        with pipeline.eval_batches(split, SPEC, 5, options=PipelineOptions(cache=cache)) as batches:
            batch = next(batches)
            assert batch["mask"].tolist() == [1, 1, 0, 1, 1]
            assert batch["video"][2].max() == 0
            assert numbers_of(batch["video"][3, 0])[0] == 130
            assert batches.corrupt == 1


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001", "valid-00000-of-00002", "valid-00001-of-00002"], {"train", "validation"}),
        (["k400-train.tfrecord-00000-of-00001", "k400_test.tfrecord-00000-of-00001"], {"train", "test"}),
        (["train_1-00000-of-00001", "train_2-00000-of-00001"], {"train_1", "train_2"}),
        (["mine-00000-of-00001.tfrecord", "val.tfrecord", "notes.txt"], {"mine", "validation"}),
    ],
)
def test_splits_from_shard_names(tmp_path, names, splits):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert set(find_shards(tmp_path)) == splits


def test_command_errors(folder, tmp_path, tiny_records):
    with pytest.raises(SystemExit, match="no records in"):
        run(tmp_path)
    (tmp_path / "train-00001-of-00003").write_bytes(b"")
    with pytest.raises(SystemExit, match="train has 1 of 3 shards"):
        run(tmp_path)
    with pytest.raises(SystemExit, match=r"no file fits the pattern 'x\*'"):
        run(folder, "--split=train=x*")
    (tmp_path / "a.tfrecord").write_bytes(b"\x1f\x8b\x08" + bytes(20))
    with pytest.raises(SystemExit, match="is compressed"):
        run(tmp_path, "--split=train=a.tfrecord")
    with pytest.raises(SystemExit, match="--head is only for those of DMVR"):
        run(tiny_records, "--head=label=x")
    other = tf.train.Example()
    other.features.feature["image"].bytes_list.value[:] = [b"x"]
    write_shards(tmp_path / "other", "train", [other.SerializeToString()], 1)
    with pytest.raises(SystemExit, match="neither chunks of vivit_jax nor"):
        run(tmp_path / "other")
    renamed = tf.train.SequenceExample()
    renamed.feature_lists.feature_list["video/frames"].feature.add().bytes_list.value[:] = [b"x"]
    write_shards(tmp_path / "renamed", "train", [renamed.SerializeToString()], 1)
    with pytest.raises(SystemExit, match="the records hold video/frames"):
        run(tmp_path / "renamed")
    length = 0x8B1F  # whose first bytes are those of a compressed file
    padded = sequence(numbered_frames([1]), pad=bytes(30_000))
    padded = sequence(numbered_frames([1]), pad=bytes(30_000 + length - len(padded)))
    write_shards(tmp_path / "long", "train", [padded], 1)
    assert (len(padded), dmvr.first_record(tmp_path / "long") is None) == (length, False)
    short = write_shards(tmp_path / "short", "train", records(VIDEOS[:2]), 1)[0]
    short.write_bytes(short.read_bytes()[:-10])
    with pytest.raises(SystemExit, match=r"cut short: record 1 at byte"):
        run(tmp_path / "short")


@pytest.mark.parametrize(("times", "fps"), [([0, 40_000, 80_000], 25.0), ([0.0, 0.04, 0.08], np.nan)])
def test_frame_rate_from_integer_times_only(tmp_path, times, fps):
    frames = numbered_frames(range(3), 64, 64)
    write_shards(tmp_path, "train", [sequence(frames, times, clip__label__index=0)], 1)
    index_main([str(tmp_path)])
    np.testing.assert_allclose(open_split(tmp_path, "train").fps, [fps], rtol=1e-6)


def test_all_frames_in_one_feature(tmp_path):
    whole = [tf.train.SequenceExample.FromString(record) for record in records()]
    for example in whole:
        frames = example.feature_lists.feature_list["image/encoded"]
        jpegs = [feature.bytes_list.value[0] for feature in frames.feature]
        del frames.feature[1:]
        frames.feature[0].bytes_list.value[:] = jpegs
    write_shards(tmp_path, "train", [example.SerializeToString() for example in whole])
    run(tmp_path)
    split = open_split(tmp_path, "train")
    assert sorted(split.num_frames.tolist()) == sorted(count for _, count, *_ in VIDEOS)
    video = int(np.argmax(split.num_frames))
    frames = reader.record_reader(split)(tf.constant(video, tf.int64), tf.constant([0, 30, 59], tf.int64))
    assert numbers_of(frames.numpy()) == [60, 90, 119]
    assert not verify.verify(tmp_path, progress=False)[0].problems


def test_records_of_another_program_in_one_feature(shared, tmp_path, capsys):
    folder = shared / "cases" / "dmvr24"
    assert "4 videos, 4 records" in run(folder, f"--out={tmp_path}", capsys=capsys)
    split = open_split(tmp_path, "train")
    assert split.num_frames.tolist() == [8] * 4
    assert split.class_names == {"label": ["aa", "bb"]}


def test_reasons_without_a_traceback(tmp_path):
    """Features of another type, and pictures that are no JPEGs."""
    other, png = records(VIDEOS[:1])[0], tf.io.encode_png(np.zeros((64, 96, 3), np.uint8)).numpy()
    other = other.replace(b"image/encoded", b"image/encodex")
    floats = tf.train.SequenceExample.FromString(records(VIDEOS[:1])[0])
    floats.feature_lists.feature_list["image/encoded"].feature[0].float_list.value[:] = [1.0]
    bad = [sequence([png], clip__label__index=0), floats.SerializeToString(), other]
    bad.append(sequence(numbered_frames([1]), clip__label__index=b"zero"))
    write_shards(tmp_path, "train", records() + bad, 1)
    run(tmp_path)
    with open(tmp_path / "rejects.csv", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    expected = ("frame 0 is no readable JPEG", "image/encoded", "no frames", "clip/label/index")
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True)), reasons
    assert not any("Graph" in reason or "File" in reason for reason in reasons)
