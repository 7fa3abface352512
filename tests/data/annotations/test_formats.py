"""Every format: its miniature data set is read, and errors in malformed files name file, line and value."""

import json
import shutil

import pytest

from tests.helpers import miniature
from tests.helpers.videos import numbered_video
from vivit_jax.data import annotations, catalog
from vivit_jax.data.annotations import parsing


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    return {name: miniature.write(name, folder / name) for name in miniature.NAMES}


@pytest.mark.parametrize("name", miniature.NAMES)
def test_rows_classes_and_files(miniatures, name):
    small = miniatures[name]
    result = annotations.read(small.dataset, small.annotations)
    video_files = annotations.VideoFiles(small.dataset, small.videos)
    assert result.class_names == dict(small.class_names)
    for split, expected in small.expected.items():
        rows = [row for row in result.rows[split] if row.video not in small.rejects]
        assert [(row.video, dict(row.labels)) for row in rows] == [(video, labels) for video, labels, _ in expected]
        assert {row.split for row in rows} == {split}
        for row in rows:
            path, start, end = video_files.find(row)
            assert path.is_file()
            # Cut where the file is longer than the row.
            assert (start, end) in ((None, None), (row.start, row.end))
    assert set(result.rows) == set(small.expected)
    assert all(video_files.find(row) is None for row in result.rows["train"] if row.video in small.rejects)


def test_replacements_win_over_other_files(miniatures, tmp_path):
    small = miniatures["kinetics400"]
    row = next(r for r in annotations.read(small.dataset, small.annotations).rows["train"] if r.video == "broken_file")
    folder = "replacement_for_corrupted_k400"
    for videos in (small.videos, small.videos / "train"):
        location = annotations.VideoFiles(small.dataset, videos).find(row)
        assert location[0].parent.name == folder
        assert location[1:] == (None, None)
    # Kinetics-600 has no such archive: a folder of that name is ignored.
    location = annotations.VideoFiles(catalog.get("kinetics600"), small.videos / "train").find(row)
    assert location[0].parent.name == "train"


def test_file_with_fewest_parents_wins(tmp_path):
    row = annotations.Row("x", None, None, {}, "train", (("clapping/x", True),))
    for path in ("training/clapping/x.mp4", "clapping/x.webm", "b/x.mp4", "applauding/x.mp4", "old/clapping/x.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    video_files = annotations.VideoFiles(catalog.get("moments_in_time"), tmp_path)
    assert video_files.find(row)[0] == tmp_path / "clapping" / "x.webm"
    slapping = annotations.Row("x", None, None, {}, "train", (("lapping/x", True),))
    assert video_files.find(slapping) is None, "names match by whole parts"


def test_wrong_video_folder(miniatures):
    """An error before the build, not 240,000 rejects after it."""
    small, other = miniatures["kinetics400"], miniatures["ucf101"]
    rows = annotations.read(small.dataset, small.annotations).rows["train"]
    annotations.VideoFiles(small.dataset, small.videos).check(rows)
    with pytest.raises(
        annotations.MissingDataError, match=r"looked for ---QUuC4vJs_000084_000094, found there .*\.avi"
    ):
        annotations.VideoFiles(small.dataset, other.videos).check(rows)


def test_something_something_file_names(miniatures, tmp_path):
    small = miniatures["something_something_v2"]
    for name in ("train", "validation", "labels"):
        official = small.annotations / f"something-something-v2-{name}.json"
        (tmp_path / f"{name}.json").write_bytes(official.read_bytes())
    new, old = (annotations.read(small.dataset, folder) for folder in (tmp_path, small.annotations))
    assert (new.rows, new.class_names) == (old.rows, old.class_names)


@pytest.mark.parametrize("names", [("train.csv", "val.csv"), ("kinetics_600_train.csv", "train.txt", "val.txt")])
def test_kinetics_file_names(miniatures, tmp_path, names):
    source = miniatures["kinetics400"].annotations
    for name in names:
        (tmp_path / name).write_bytes((source / ("train.csv" if "train" in name else "val.csv")).read_bytes())
    result = annotations.read(catalog.get("kinetics600"), tmp_path)
    assert [len(result.rows[split]) for split in ("train", "validation")] == [6, 2]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("kinetics-400_train.csv", "kinetics-400_val.csv"),
        ("kinetics400_train_list.csv", "kinetics400_val_list.csv"),
        ("k400/annotations/train.csv", "k400/annotations/val.csv"),
        ("annotations/Kinetics_400_Train.csv", "annotations/K400-Validate.csv"),
    ],
)
def test_other_spellings_of_kinetics_files(miniatures, tmp_path, train, validation):
    source = miniatures["kinetics400"].annotations
    for name, official in ((train, "train.csv"), (validation, "val.csv")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((source / official).read_bytes())
    result = annotations.read(catalog.get("kinetics400"), tmp_path)
    assert [len(result.rows[split]) for split in ("train", "validation")] == [6, 2]


def test_several_files_for_one(tmp_path):
    for folder in ("a/k400", "a/old"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.csv").write_text("x")
    with pytest.raises(annotations.AnnotationError, match=r"several files for one, .*; give the folder of one"):
        annotations.read(catalog.get("kinetics400"), tmp_path)


def test_large_folders_are_searched_fast(tmp_path, monkeypatch):
    """A file's name is compared once for each split, not for each of its eighty possible names."""
    compared, key = [], parsing._key
    monkeypatch.setattr(parsing, "_key", lambda name: compared.append(name) or key(name))
    (tmp_path / "a.mp4").write_text("x")
    (tmp_path / "Train.csv").write_text("label,youtube_id,time_start,time_end\nwalk,a,0,1\n")
    assert len(annotations.read(catalog.get("kinetics400"), tmp_path).rows["train"]) == 1
    assert compared.count("a.mp4") == 3


def test_hidden_files_beside_lists(miniatures, tmp_path):
    """Archives of macOS have a hidden `._x` beside each `x`."""
    small = miniatures["hmdb51"]
    shutil.copytree(small.annotations, tmp_path, dirs_exist_ok=True)
    for path in [*tmp_path.rglob("*.txt")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5")
    assert annotations.read(small.dataset, tmp_path).rows == annotations.read(small.dataset, small.annotations).rows


def test_a_list_without_a_header_for_kinetics(tmp_path):
    (tmp_path / "kinetics400_train_list_videos.txt").write_text("abseiling/x_000001_000011.mp4 0\n")
    with pytest.raises(annotations.AnnotationError, match="a list `path label` is a custom data set, --dataset=csv"):
        annotations.read(catalog.get("kinetics400"), tmp_path)


def test_answers_of_something_something(miniatures, tmp_path):
    small = miniatures["something_something_v2"]
    for path in small.annotations.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = small.class_names["label"][1]
    (tmp_path / "test-answers.csv").write_text(f"4711;{name}\n")
    result = annotations.read(small.dataset, tmp_path)
    assert [(row.video, row.labels["label"]) for row in result.rows["test"]] == [("4711", 1)]
    (tmp_path / "test-answers.csv").write_text("4711\n")
    with pytest.raises(annotations.AnnotationError, match="line 1: 1 values; a row is id;class"):
        annotations.read(small.dataset, tmp_path)


def test_kinetics_duplicates_are_noted(tmp_path, caplog):
    row = "abseiling,aaaaaaaaaaa,0,10,train\n"
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + row + row)
    result = annotations.read(catalog.get("kinetics400"), tmp_path)
    assert len(result.rows["train"]) == 1
    assert "1 duplicate rows are ignored" in caplog.text


def test_more_classes_than_published(tmp_path):
    rows = "".join(f"class {i},{i:011d},0,10,train\n" for i in range(401))
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    with pytest.raises(annotations.AnnotationError, match=r"401 classes of label, Kinetics-400 has 400"):
        annotations.read(catalog.get("kinetics400"), tmp_path)


def test_later_noun_classes_are_rejected(miniatures, tmp_path):
    small = miniatures["epic_kitchens100"]
    for path in small.annotations.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    nouns = tmp_path / "EPIC_100_noun_classes.csv"
    nouns.write_text("id,key\n" + "".join(f"{i},noun {i}\n" for i in range(304)))
    with pytest.raises(annotations.AnnotationError, match="304 classes of noun, EPIC-Kitchens-100 has 300"):
        annotations.read(small.dataset, tmp_path)
    nouns.rename(tmp_path / "EPIC_100_noun_classes_v2.csv")
    with pytest.raises(annotations.MissingDataError, match=r"no EPIC_100_noun_classes\.csv "):
        annotations.read(small.dataset, tmp_path)


KINETICS, EPIC, MOMENTS = ("kinetics400", "train.csv"), ("epic_kitchens100", "EPIC_100_train.csv"), "moments_in_time"
SOMETHING, UCF = "something_something_v2", "ucf101"
LISTS = "ucfTrainTestlist"
HMDB = "testTrainMulti_7030_splits/kick_test_split1.txt"
CHANGES = [
    (*KINETICS, "", None, "train.csv: empty"),
    (*KINETICS, "label,youtube_id", "class,id", "no column label, youtube_id; found class, id, time_start"),
    (*KINETICS, ",84,94,", ",84,nan,", "train.csv, line 2: time_end is 'nan', not a number"),
    (*KINETICS, ",84,94,", ",84,94,95,", "line 2: 7 values for 6 columns"),
    (*KINETICS, "testifying,---QUuC4vJs", ",---QUuC4vJs", "line 2: a row without a label"),
    (*KINETICS, 'scissors"""', "scissors", r"not CSV .*; is a quote not closed\?"),
    ("kinetics400", "val.csv", "abseiling", "absailing", "val.csv, line 2: label 'absailing' has no training video"),
    (*EPIC, "P01_01_1,", "P01_01_0,", "line 3: narration_id P01_01_0 is already in line 2"),
    (*EPIC, ",take,0,", ",take,0.5,", "line 2: verb_class is '0.5', not a whole number"),
    (*EPIC, ",take,0,", ",take,97,", "line 2: verb_class 97 is outside 0 to 2"),
    (
        MOMENTS,
        "trainingSet.csv",
        "praying,4",
        "preying,4",
        "line 2: .* class 'preying', which is not in moments_",
    ),
    (MOMENTS, "trainingSet.csv", "praying,4,0", "praying,4", "line 2: 3 values; a row is file,label,positive,negative"),
    (MOMENTS, "moments_categories.txt", "clapping,0", "clapping,7", "3 classes, but the ids are not 0 to 2"),
    (MOMENTS, "moments_categories.txt", "clapping,0", "clapping", "line 3: 1 values; a row is name,id"),
    (SOMETHING, "something-something-v2-train.json", "]", "", "line 1: broken JSON"),
    (SOMETHING, "something-something-v2-train.json", None, "{}", "not a list with entries"),
    (
        SOMETHING,
        "something-something-v2-train.json",
        '"42326"',
        '"78687"',
        "entry 2: video 78687 is already in entry",
    ),
    (SOMETHING, "something-something-v2-train.json", '"template"', '"tmpl"', "entry 1: no template in .*'78687'"),
    (
        SOMETHING,
        "something-something-v2-train.json",
        "Holding [",
        "Owning [",
        "entry 1: 78687 has the class 'Owning",
    ),
    (SOMETHING, "something-something-v2-labels.json", '"1"', '"one"', "entry 1: 'Holding something' is 'one', not a"),
    (UCF, f"{LISTS}/trainlist01.txt", ".avi 2", ".avi 3", "line 2: Archery/v_Archery.* number 3, its class has 2"),
    (UCF, f"{LISTS}/trainlist01.txt", ".avi 2", ".avi", "line 2: 'Archery/v_.*' is not a file and a number"),
    (
        UCF,
        f"{LISTS}/testlist01.txt",
        "Archery/",
        "Arching/",
        "line 2: .* class 'Arching', which is not in classInd",
    ),
    (UCF, f"{LISTS}/classInd.txt", "2 Archery", "4 Archery", "3 classes, but the ids are not 1 to 3"),
    ("hmdb51", HMDB, ".avi 2", ".avi 3", "line 3: .* has mark 3; it must be 0, 1 or 2"),
]


@pytest.mark.parametrize(("name", "file", "old", "new", "message"), CHANGES)
def test_malformed_files(miniatures, tmp_path, name, file, old, new, message):
    """Replaces `old` by `new` in one file; None: all of its content."""
    small = miniatures[name]
    for path in small.annotations.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(small.annotations)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    content = (tmp_path / file).read_text(encoding="utf-8")
    changed = (new or "") if not old else content.replace(old, new)
    assert changed != content
    (tmp_path / file).write_text(changed, encoding="utf-8")
    with pytest.raises(annotations.AnnotationError, match=message) as caught:
        annotations.read(small.dataset, tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_encodings_other_than_utf_8(tmp_path, encoding):
    text = "label,youtube_id,time_start,time_end,split\nfaire une cr\u00eape,aaaaaaaaaaa,0,10,train\n"
    (tmp_path / "train.csv").write_bytes(text.encode(encoding))
    with pytest.raises(annotations.AnnotationError, match=r"train.csv: .*; save it as UTF-8"):
        annotations.read(catalog.get("kinetics400"), tmp_path)
    (tmp_path / "train.csv").write_bytes(text.encode("utf-8-sig"))
    result = annotations.read(catalog.get("kinetics400"), tmp_path)
    assert result.class_names == {"label": ["faire une cr\u00eape"]}


def test_something_something_class_ids(tmp_path):
    """Class ids come from labels.json, not from the alphabetical order."""
    (tmp_path / "labels.json").write_text(json.dumps({"B something": "0", "A something": "1"}))
    entry = {"id": 7, "label": "b x", "template": "B [something]", "placeholders": ["x"]}
    (tmp_path / "train.json").write_text(json.dumps([entry]))
    result = annotations.read(catalog.get("something_something_v2"), tmp_path)
    assert result.class_names["label"] == ["B something", "A something"]
    assert result.rows["train"][0].labels == {"label": 0}
    numbered_video(tmp_path / "v" / "7.webm", 1, codec="libvpx")
    video_files = annotations.VideoFiles(catalog.get("something_something_v2"), tmp_path / "v")
    assert video_files.find(result.rows["train"][0])[0].name == "7.webm"
