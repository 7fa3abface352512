"""Multi-label heads: from a CSV through records, index, subsets and mixtures to multi-hot batches."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers.videos import numbered_video
from vivit_jax.data import annotations, build, catalog, pipeline, verify
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import scan
from vivit_jax.data.records.split import open_split
from vivit_jax.data.selection import sampling, subset, training_set

# File -> tags; "plain.mp4" has none.
TAGS = {
    "a.mp4": ("dog", "outdoors"),
    "b.mp4": ("outdoors",),
    "c.mp4": ("cat", "dog", "music"),
    "plain.mp4": (),
}
CLASSES = ["cat", "dog", "music", "outdoors"]
SPEC = sampling.ClipSpec(2, (32, 32))


def write_csv(path, tags=TAGS, separator=";"):
    rows = [f"{name},{separator.join(of)},{'long' if i % 2 else 'short'}" for i, (name, of) in enumerate(tags.items())]
    lines = [f"{row},train" for row in rows] + [f"{rows[0].replace('a.mp4', 'v.mp4')},val"]
    path.write_text("\n".join(["path,label_tags,label_length,split", *lines]))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i, name in enumerate([*TAGS, "v.mp4"]):
        numbered_video(folder / name, 18 + i, height=32, width=32)
    return folder


@pytest.fixture(scope="module")
def records(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    table = write_csv(folder / "labels.csv")
    return build.build(
        "tagged",
        videos,
        table,
        folder,
        build.BuildOptions(num_workers=0, progress=False, kind="csv", label_separator=";"),
    )


def multi_hot(names):
    return [float(name in names) for name in CLASSES]


def batches(split, **options):
    stream = pipeline.eval_batches(split, SPEC, 3, options=PipelineOptions(threads=1, **options))
    return list(stream)


def test_batches_are_multi_hot(records):
    split = open_split(records, "train")
    assert split.multi_label == {"tags"}
    assert split.class_names == {"tags": CLASSES, "length": ["long", "short"]}
    first, last = batches(split)
    assert first["label"]["tags"].dtype == np.float32
    tags = np.concatenate([b["label"]["tags"] for b in (first, last)])
    assert tags.shape == (6, 4)
    assert tags.tolist() == [multi_hot(names) for names in TAGS.values()] + [[0.0] * 4] * 2, "padding has none"
    assert first["label"]["length"].dtype == np.int32
    training = pipeline.train_batches(split, SPEC, 4, 0, options=PipelineOptions(threads=1))
    batch = next(training)
    assert batch["label"]["tags"].tolist() == [multi_hot(list(TAGS.values())[i]) for i in batch["index"]]


def test_index_is_rebuilt_from_records(records, tmp_path):
    """The index scanned from the records equals that of the build; each record has all its labels."""
    written = open_split(records, "train")
    scanned = next(split for split in scan.scan(records) if split.name == "train")
    for head, ids in written.labels.items():
        np.testing.assert_array_equal(scanned.labels[head], ids)
    example = tf.train.Example.FromString(next(tf.data.TFRecordDataset(written.shard_paths).as_numpy_iterator()))
    assert list(example.features.feature["labels/tags"].int64_list.value) == [1, 3]
    reports = verify.verify(records, 1, progress=False)
    assert [str(problem) for report in reports for problem in report.problems] == []
    copy = shutil.copytree(records, tmp_path / "copy")
    wrong = open_split(copy, "train")
    wrong.labels["tags"][0] = [0, 3, -1]
    wrong.save()
    assert any(
        "labels/tags is [1, 3], [0, 3] in the index" in str(p)
        for r in verify.verify(copy, 1, False)
        for p in r.problems
    )


def test_summary_and_catalog_list_multi_label_heads(records):
    summary = json.loads((records / "summary.json").read_text())
    assert summary["multi_label"] == ["tags"]
    assert summary["splits"]["train"]["classes"]["tags"] == {"cat": 1, "dog": 2, "music": 1, "outdoors": 2}
    assert catalog.of_records("tagged", records).multi_label == ["tags"]


def test_index_format_depends_on_multi_label_heads(records, tiny_records):
    assert int(np.load(records / "index_train.npz")["format"]) == 3
    assert int(np.load(tiny_records / "index_train.npz")["format"]) == 2, "older versions read it as before"


def test_subsets(records):
    split = open_split(records, "train")
    selected = subset.apply({"t": split}, subset.Subset(classes=("dog", "cat")))["t"]
    assert selected.video_id.tolist() == ["a.mp4", "c.mp4"]
    assert selected.labels["tags"].tolist() == [[1, 3, -1], [0, 1, 2]]
    with pytest.raises(subset.SubsetError, match="head 'tags' of t is multi-label"):
        subset.apply({"t": split}, subset.Subset(per_class=1))


def test_mixtures_relabel_all_labels(records):
    split = open_split(records, "train")
    other = {"tags": ["outdoors", "music", "dog"], "length": ["long", "short"]}
    relabelled = training_set.relabel(split, other)
    assert relabelled.video_id.tolist() == ["a.mp4", "b.mp4", "plain.mp4"], "videos with an unknown class are left out"
    assert relabelled.labels["tags"].tolist() == [[0, 2, -1], [0, -1, -1], [-1, -1, -1]]
    union = training_set.training_set({"one": relabelled, "two": split}, "one", unknown_classes="union")
    assert union.class_names["tags"] == ["outdoors", "music", "dog", "cat"]
    assert union.multi_label == {"tags"}
    batch = next(pipeline.train_batches(union, SPEC, 14, 0, options=PipelineOptions(threads=1)))
    names = [np.array(union.class_names["tags"])[row > 0].tolist() for row in batch["label"]["tags"]]
    ids = [*relabelled.video_id, *split.video_id]
    assert [sorted(row) for row in names] == [list(TAGS[ids[i]]) for i in batch["index"]]


def test_single_and_multi_label_heads_do_not_mix(records, videos, tmp_path):
    table = write_csv(tmp_path / "labels.csv", {name: tags[:1] or ("cat",) for name, tags in TAGS.items()})
    single = build.build(
        "single", videos, table, tmp_path, build.BuildOptions(num_workers=0, progress=False, kind="csv")
    )
    splits = {"tagged": open_split(records, "train"), "single": open_split(single, "train")}
    with pytest.raises(training_set.MixtureError, match="head tags is multi-label in one of single and tagged"):
        training_set.training_set(splits, "tagged", unknown_classes="union")


def test_unique_labels_are_not_held_out(tmp_path):
    tags = {f"{i}.mp4": ("common", f"rare{i}") if i < 20 else ("common",) for i in range(60)}
    lines = [f"{name},{'|'.join(of)}" for name, of in tags.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    result = annotations.read(catalog.custom("x", "csv", label_separator="|"), tmp_path / "labels.csv")
    assert result.multi_label == {"label"}
    held_out = [row.video for row in result.rows["validation"]]
    assert held_out
    assert all(tags[name] == ("common",) for name in held_out)


@pytest.mark.parametrize(
    ("field", "message"),
    [("dog;;cat", "line 2: label is 'dog;;cat', with an empty label beside a ';'"), ("dog;dog", "a duplicate label"),
     ("dog", "';' is in no field of label")],
)  # fmt: skip
def test_malformed_label_fields(tmp_path, field, message):
    (tmp_path / "labels.csv").write_text(f"path,label\na.mp4,{field}\nb.mp4,cat\n")
    with pytest.raises(annotations.AnnotationError, match=message):
        annotations.read(catalog.custom("x", "csv", label_separator=";"), tmp_path / "labels.csv")


def test_head_without_training_labels(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label,split\na.mp4,,train\nb.mp4,cat;dog,val\n")
    with pytest.raises(annotations.AnnotationError, match="line 3: label 'cat' has no training video"):
        annotations.read(catalog.custom("x", "csv", label_separator=";"), tmp_path / "labels.csv")


def test_separator_errors(records, videos):
    with pytest.raises(ValueError, match=r"holds records with label_separator ; \(None requested\)"):
        build.build("tagged", videos, videos, records.parent.parent, build.BuildOptions(kind="csv"))
    with pytest.raises(ValueError, match=r"label_separator is ',' for a csv; it is for a csv, and one of ; \|"):
        catalog.custom("x", "csv", label_separator=",")
    with pytest.raises(ValueError, match=r"are for a custom CSV, not for kinetics400"):
        build.build("kinetics400", videos, videos, records.parent.parent, build.BuildOptions(label_separator=";"))
