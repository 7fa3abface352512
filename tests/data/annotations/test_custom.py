"""Custom data sets: a folder per class, a CSV; splits, heads, order of the classes, errors."""

from collections import Counter

import pytest

from vivit_jax.data import annotations, catalog

FOLDER, CSV = catalog.custom("mine", "folder"), catalog.custom("mine", "csv")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def csv(folder, *lines, header="path,label"):
    folder.mkdir(exist_ok=True)
    (folder / "any.csv").write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return annotations.read(CSV, folder)


def test_folders_without_splits(tmp_path):
    names = [f"{label}/clip {i:03d}.mp4" for label in ("10", "9", "walk") for i in range(200)]
    touch(tmp_path, *names, "walk/deep/er/x.webm", "walk/readme.txt", ".cache/thumbs/x.mp4")
    result = annotations.read(FOLDER, tmp_path)
    assert result.class_names == {"label": ["9", "10", "walk"]}
    counts = {split: len(rows) for split, rows in result.rows.items()}
    assert sum(counts.values()) == 601
    assert 90 <= counts["validation"] <= 150, "a fifth of less than 1,000 videos, by a hash"
    assert f"selects {counts['validation']} of the videos for the validation split" in result.notes[0]
    held_out = {row.video for row in result.rows["validation"]}
    # The choice depends on the path alone: not on other videos, the machine or the run.
    assert "10/clip 012.mp4" in held_out
    touch(tmp_path, *(f"run/{i}.mp4" for i in range(300)))
    held_out_again = {row.video for row in annotations.read(FOLDER, tmp_path).rows["validation"]}
    assert {name for name in held_out_again if not name.startswith("run")} == held_out
    touch(tmp_path, *(f"run/{i}.mp4" for i in range(300, 700)))
    of_many = {row.video for row in annotations.read(FOLDER, tmp_path).rows["validation"]}
    assert 100 <= len(of_many) <= 160, "a tenth of 1,000 or more"
    assert {name for name in of_many if not name.startswith("run")} < held_out


def test_each_class_of_a_small_set_is_held_out(tmp_path):
    """The hash alone may hold out none of a class of 50, and of a class of 10 often does."""
    for number in range(12):
        sizes = {"fight": 50, "calm": 150, **{f"rare{i}": 10 for i in range(4)}, "single": 1}
        touch(tmp_path / str(number), *(f"{label}/{number}_{i}.mp4" for label, n in sizes.items() for i in range(n)))
        result = annotations.read(FOLDER, tmp_path / str(number))
        names = result.class_names["label"]
        held_out = Counter(names[row.labels["label"]] for row in result.rows["validation"])
        assert all(held_out[label] >= n // 10 for label, n in sizes.items()), held_out
        assert held_out["single"] == 0


def test_links_are_followed_and_hidden_files_skipped(tmp_path):
    touch(tmp_path / "far", "x.mp4")
    touch(tmp_path / "videos", "a/._y.mp4", "a/y.mp4")
    (tmp_path / "videos" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "videos" / "c").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "far")
    result = annotations.read(FOLDER, tmp_path / "videos")
    assert sorted(row.video for rows in result.rows.values() for row in rows) == ["a/y.mp4", "b/x.mp4", "c/x.mp4"]


@pytest.mark.parametrize("junk", ["__MACOSX/a/._x.mp4", "@eaDir/x.mp4/thumb.jpg", "lost+found/x", ".cache/x.mp4"])
@pytest.mark.parametrize("parts", [("train/", "val/"), ("",)])
def test_folders_of_other_programs_are_no_classes(tmp_path, junk, parts):
    result = annotations.read(FOLDER, touch(tmp_path, junk, *(f"{part}{x}/{x}.mp4" for part in parts for x in "ab")))
    assert result.class_names == {"label": ["a", "b"]}
    assert not [note for note in result.notes if "no video" in note]


def test_every_class_keeps_a_training_video(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/2.mp4", "b/1.mp4", "c/1.mp4")
    result = annotations.read(FOLDER, tmp_path)
    assert {row.labels["label"] for row in result.rows["train"]} == {0, 1, 2}
    assert [row.video[0] for row in result.rows["validation"]] == ["a"]


def test_folders_with_splits(tmp_path):
    touch(tmp_path, "train/b/x.mp4", "train/a/x.mp4", "validation/a/y.avi", "test/b/z.mov")
    result = annotations.read(FOLDER, tmp_path)
    assert {s: [r.video for r in rows] for s, rows in result.rows.items()} == {
        "train": ["train/a/x.mp4", "train/b/x.mp4"],
        "validation": ["validation/a/y.avi"],
        "test": ["test/b/z.mov"],
    }
    row = result.rows["test"][0]
    assert annotations.VideoFiles(FOLDER, tmp_path).find(row) == (tmp_path / "test/b/z.mov", None, None)


def test_test_split_serves_as_validation(tmp_path):
    result = annotations.read(FOLDER, touch(tmp_path, "train/a/x.mp4", "test/a/y.mp4"))
    assert [row.split for row in result.rows["validation"]] == ["validation"]
    assert "the test split serves as validation" in result.notes[0]


def test_class_named_test(tmp_path):
    result = annotations.read(FOLDER, touch(tmp_path, "test/x.mp4", "play/y.mp4"))
    assert result.class_names == {"label": ["play", "test"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/a/x.mp4", "test/a/x.mp4"], "folders test, val, but none for training"),
        (["train/a/x.mp4", "other/a/x.mp4"], "other beside train; either all folders are splits"),
        (
            ["train/a/x.mp4", "val/a/y.mp4", "validation/a/y.mp4"],
            "several folders for one split: train, val",
        ),
        (["train/x.mp4", "train/a/y.mp4"], "train/x.mp4 is in no folder of a class; the layout is split/class/video"),
        (["a/x.mp4", "y.mp4"], "y.mp4 is in no folder of a class; the layout is class/video"),
        (["train/a/x.mp4", "val/b/y.mp4"], "val/b/y.mp4: label 'b' has no training video"),
    ],
)
def test_folder_errors(tmp_path, names, message):
    with pytest.raises(annotations.AnnotationError, match=message):
        annotations.read(FOLDER, touch(tmp_path, *names))


@pytest.mark.parametrize("names", [["x.mp4", "y.mp4", "z.mp4"], ["train/x.mp4", "train/y.mp4", "val/z.mp4"]])
def test_videos_in_no_folder_of_a_class_have_no_labels(tmp_path, names):
    result = annotations.read(FOLDER, touch(tmp_path, *names))
    assert (dict(result.class_names), [row.labels for rows in result.rows.values() for row in rows]) == ({}, [{}] * 3)
    assert [len(result.rows[split]) for split in ("train", "validation")] == [2, 1]
    assert "the 3 videos" in result.notes[0]
    assert "have no labels" in result.notes[0]
    assert list(annotations.read(FOLDER, touch(tmp_path / "one", "x.mp4")).rows) == ["train"], "one is for training"


def test_no_videos(tmp_path):
    for folder in (touch(tmp_path, "a/notes.txt"), tmp_path / "absent"):
        with pytest.raises(annotations.MissingDataError, match=r"--dataset=folder --name=mine"):
            annotations.read(FOLDER, folder)


def test_csv_without_splits(tmp_path):
    result = csv(
        tmp_path,
        *(f"{i // 3}.mp4,{'ab'[i % 2]},{i % 3},{i % 3 + 1}" for i in range(300)),
        header="path,label,start,end",
    )
    assert result.class_names == {"label": ["a", "b"]}
    assert set(result.rows) == {"train", "validation"}
    train, held_out = ({row.video for row in rows} for rows in result.rows.values())
    assert not train & held_out, "segments of a file stay together"


def test_csv_file_selection(tmp_path):
    csv(tmp_path, "x.mp4,a", "y.mp4,a")
    assert len(annotations.read(CSV, tmp_path / "any.csv").rows["train"]) == 1
    (tmp_path / "other.csv").write_text("path,label\nz.mp4,a\n")
    with pytest.raises(annotations.AnnotationError, match=r"2 CSV files \(any.csv, other.csv\); .* call it mine.csv"):
        annotations.read(CSV, tmp_path)
    (tmp_path / "mine.csv").write_text("path,label\nz.mp4,q\n")
    assert annotations.read(CSV, tmp_path).class_names == {"label": ["q"]}
    with pytest.raises(annotations.MissingDataError, match=r"one \.csv with a header"):
        annotations.read(CSV, touch(tmp_path / "empty", "x.txt"))


def test_csv_paths(tmp_path):
    videos = touch(tmp_path / "videos", "a/x.mp4", "a/x.webm", "b/y.mp4")
    far = touch(tmp_path / "far", "z.m2v") / "z.m2v"
    result = csv(tmp_path / "c", "a/x.webm,l", f"{far},l", "b/y,l", "gone.mp4,l")
    rows = {row.video: row for rows in result.rows.values() for row in rows}
    video_files = annotations.VideoFiles(CSV, videos)
    files = {video: (video_files.find(row) or [None])[0] for video, row in rows.items()}
    assert files == {
        "a/x.webm": videos / "a/x.webm",
        str(far): far,
        "b/y": videos / "b/y.mp4",
        "gone.mp4": None,
    }


def test_unused_columns_are_noted(tmp_path):
    assert any("column fps is not used" in note for note in csv(tmp_path, "x.mp4,a,25", header="path,label,fps").notes)


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("where,label", ["x.mp4,a"], "no column path; found where, label; name the columns in order with --columns"),
        ("path,name", ["x.mp4,a"], r"no column label \(or label_HEAD for several heads\); found path, name"),
        ("path,label,label_verb", ["x.mp4,a,b"], "columns label, label_verb; with several heads each needs a name"),
        ("path,label_Verb", ["x.mp4,a"], "column 'label_Verb'; a head's column is label_"),
        ("path,label,label", ["x.mp4,a,b"], "duplicate column in path, label, label"),
        (",path,label,label", ["0,x.mp4,a,b"], "duplicate column in , path, label, label"),
        ("path,label", [], "any.csv: no rows"),
        ("path,label", ["x.mp4,a", "y.mp4,"], "line 3: label is empty"),
        ("path,label", [",a"], "line 2: path is empty"),
        ("path,label", ["x.mp4,a", "./x.mp4,b"], "line 3: the segment x.mp4 is already in line 2"),
        ("path,label,start,end", ["x.mp4,a,5,5"], "line 2: end 5 s is not after start 5 s"),
        ("path,label,start,end", ["x.mp4,a,-1,5"], "line 2: start is -1; seconds count from"),
        ("path,label,start,end", ["x.mp4,a,0:01,5"], "line 2: start is '0:01', not a number"),
        ("path,label,split", ["x.mp4,a,train", "y.mp4,a,dev"], "line 3: split is 'dev'; it must be train, val or test"),
        ("path,label,split", ["x.mp4,a,train", "y.mp4,a,"], "line 3: split is ''"),
        ("path,label,split", ["x.mp4,a,val"], "no row of split train; found validation"),
        ("path,label,split", ["x.mp4,a,train", "y.mp4,b,val"], "line 3: label 'b' has no training video"),
    ],
)
def test_csv_errors(tmp_path, header, lines, message):
    with pytest.raises(annotations.AnnotationError, match=message) as caught:
        csv(tmp_path, *lines, header=header)
    assert "any.csv" in str(caught.value)


@pytest.mark.parametrize("column", ["group", "speaker_id"])
def test_no_group_is_in_two_splits(tmp_path, column, caplog):
    """Unequal groups; two classes have one group each beside the common ones, as a source video has one class."""
    rows = [(f"{g}_{i}.mp4", f"class{i % 3}", f"person {g}") for g in range(9) for i in range(30 + 3 * g)]
    rows += [(f"own_{g}_{i}.mp4", f"own{g % 2}", f"scene {g}") for g in range(6) for i in range(5)]
    table = "".join(f"{','.join(row)}\n" for row in rows)
    (tmp_path / "labels.csv").write_text(f"path,label,{column}\n{table}")
    splits = annotations.read(CSV, tmp_path).rows
    group_of, class_of = {path: group for path, _, group in rows}, {path: name for path, name, _ in rows}
    train, held_out = ([row.video for row in splits[split]] for split in ("train", "validation"))
    assert not {group_of[path] for path in train} & {group_of[path] for path in held_out}
    assert {class_of[path] for path in train} == {class_of[path] for path in held_out}, "every class in both"
    assert 0.1 <= len(held_out) / len(rows) <= 0.3
    assert "of the 15 groups for the validation split" in caplog.text

    # A stated split stays as it is, with a note.
    lines = [f"{path},{name},{group},{'val' if i % 5 else 'train'}\n" for i, (path, name, group) in enumerate(rows)]
    (tmp_path / "labels.csv").write_text(f"path,label,{column},split\n{''.join(lines)}")
    annotations.read(CSV, tmp_path)
    assert "15 groups are in several splits" in caplog.text
    rows = "a.mp4,x,train,,\na.mp4,x,val,,\nb.mp4,x,train,0,1\nb.mp4,x,val,1,2\nb.mp4,x,val,,"
    (tmp_path / "labels.csv").write_text(f"path,label,split,start,end\n{rows}\n")
    annotations.read(CSV, tmp_path)
    assert "1 videos are in several splits, first a.mp4" in caplog.text

    (tmp_path / "labels.csv").write_text(f"path,label,{column}\na.mp4,x,one\nb.mp4,y,one\n")
    with pytest.raises(annotations.AnnotationError, match="state the splits"):
        annotations.read(CSV, tmp_path)
