"""Lists of the field: separators, headers, blanks in paths, splits in several files, and what is not clear."""

import pytest

from vivit_jax.data import annotations, catalog

CSV = catalog.custom("mine", "csv")
# Name -> (content, (file, class) of each row).
FORMS = {
    "blank": ("a.mp4 0\nb.mp4 1\n", [("a.mp4", "0"), ("b.mp4", "1")]),
    "comma": ("a.mp4,0\nb.mp4,1\n", [("a.mp4", "0"), ("b.mp4", "1")]),
    "tab": ("a.mp4\twalk, slow\nb c.mp4\trun\n", [("a.mp4", "walk, slow"), ("b c.mp4", "run")]),
    "header, blank": ("path label\na.mp4 0\n", [("a.mp4", "0")]),
    "header, blank, blanks in paths": ("path label\nmy a.mp4 0\nb.mp4 1\n", [("my a.mp4", "0"), ("b.mp4", "1")]),
    "header, semicolon": ("path;label\na.mp4;0\n", [("a.mp4", "0")]),
    "header, tab": ("path\tlabel\na.mp4\t0\n", [("a.mp4", "0")]),
    "comment": ("# path label\na.mp4 0\n", [("a.mp4", "0")]),
    "comment without a blank": ("#path label\na.mp4 0\n", [("a.mp4", "0")]),
    "# in the first name": ("#1.mp4 0\n#2.mp4 1\n", [("#1.mp4", "0"), ("#2.mp4", "1")]),
    "more names": ("Videos;Class Label\na.mp4;0\n", [("a.mp4", "0")]),
    "plural": ("videos,labels\na.mp4,0\n", [("a.mp4", "0")]),
    "video_path": ("video_path,label\na.mp4,0\n", [("a.mp4", "0")]),
    "other names": ("Clip Name;Clip Path;Tag\nx;/t/a.avi;walk\n", [("/t/a.avi", "walk")]),
    "column of pandas": (",file_name,class\n0,a.mp4,walk\n1,b.mp4,run\n", [("a.mp4", "walk"), ("b.mp4", "run")]),
    "name and number": ("path,label,label_name\na.mp4,7,walk\n", [("a.mp4", "walk")]),
    "number and name": ("a.mp4,0,walk\nb.mp4,1,run\n", [("a.mp4", "walk"), ("b.mp4", "run")]),
    "byte-order mark, CRLF": ("\ufeffa.mp4 0\r\nb.mp4 1\r\n", [("a.mp4", "0"), ("b.mp4", "1")]),
    "blanks in paths": ("my dir/a b.mp4 0\nc.MP4 1\n", [("my dir/a b.mp4", "0"), ("c.MP4", "1")]),
    "blanks in paths without suffix": ("my video one 0\nother 1\n", [("my video one", "0"), ("other", "1")]),
    "quotes": ('"my dir/a b" 0\nc 1\n', [("my dir/a b", "0"), ("c", "1")]),
    "quotes and commas": ('"my, dir/a.mp4",0\nc.mp4,1\n', [("my, dir/a.mp4", "0"), ("c.mp4", "1")]),
    "blanks in labels": ("a.mp4 playing guitar\nb.mp4 run\n", [("a.mp4", "playing guitar"), ("b.mp4", "run")]),
    "frames of MMAction2": ("some/dir 163 1\nmy other/dir 98 2\n", [("some/dir", "1"), ("my other/dir", "2")]),
    "Jester": (
        "34870;Thumb Up\n9;Thumb Up\n1;No, wait\n",
        [("34870", "Thumb Up"), ("9", "Thumb Up"), ("1", "No, wait")],
    ),
    "label first": ("walk,a.mp4\nrun,b.mp4\n", [("a.mp4", "walk"), ("b.mp4", "run")]),
    "split": ("a.mp4,walk,train\nb.mp4,walk,val\n", [("a.mp4", "walk"), ("b.mp4", "walk")]),
    "duplicate rows": ("a.mp4 0\n./a.mp4 0\nb.mp4 1\n", [("a.mp4", "0"), ("b.mp4", "1")]),
    "header that --columns replaces": ("wo,was\na.mp4,walk\n", [("a.mp4", "walk")]),
}


def read(path, **custom):
    result = annotations.read(catalog.custom("mine", "csv", **custom), path)
    return result, {
        row.file: result.class_names["label"][row.labels["label"]] for rows in result.rows.values() for row in rows
    }


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    content, expected = FORMS[form]
    (tmp_path / "list.csv").write_bytes(content.encode())
    columns = ("path", "label") if "--columns" in form else None
    assert read(tmp_path / "list.csv", columns=columns)[1] == dict(expected)


@pytest.mark.parametrize("number", [1, 2, 4, 5, 6, 8])
def test_lists_of_other_programs(shared, number):
    """Those of SlowFast, VideoMAE, MMAction2 and pytorchvideo."""
    path = shared / "cases" / f"train{number if number > 1 else ''}.csv"
    expected = {"a.mp4": "0", "b.mp4": "0", "c.mp4": "1", "d.mp4": "1"}
    found = read(path)[1]
    assert found == {name: expected[name] for name in found}
    assert len(found) == sum(".mp4" in line for line in path.read_text().splitlines())


def test_the_form_is_logged(tmp_path, caplog):
    (tmp_path / "list.txt").write_text("a 10 3\nb 12 4\n")
    annotations.read(CSV, tmp_path / "list.txt")
    assert "no header; columns path, num_frames, label, by blanks" in caplog.text
    assert "the 2 classes of label are the numbers 3 to 4; their ids begin at 0" in caplog.text


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("one,walk\nother,run\n", None, r"is the first line \(one, walk\) a header\? If not, .*--columns=path,label"),
        ("a.mp4 100 3\nb.mp4 90 4\n", None, r"3 columns without a header \(a.mp4, 100, 3\); .*--columns="),
        ("some/dir 0 163 1\n", None, "4 columns without a header"),
        ("wo,was\na.mp4,1\n", None, "no column path; found wo, was; .*--columns="),
        ("my a.mp4\nb.mp4\n", None, r"line 2: 1 values for 2 columns \(b.mp4\).*quotes around paths with blanks"),
        ("path,klass\na.mp4,up\nb.mp4,down\n", None, r"no column label .*; found path, klass; .*--columns="),
        ("a.mp4 1 2\nb.mp4 3\nc.mp4 1 2 3\n", None, r"line \d: \d values for \d columns .*--label_separator"),
        ("a.mp4,0\nb.mp4,1\nc.mp4\n", None, r"line 3: 1 values for 2 columns \(c.mp4\)"),
        ("a.mp4,0\nb.mp4,1\n", ("path", "label", "start"), "line 1: 2 values for 3 columns"),
        ("path label\n", None, "no rows"),
        (",,\n,,\n", None, "no rows, but commas"),
        ('"\n', None, r'is the first line \("\) a header\?'),
        ("<!DOCTYPE html>\n<html></html>", None, "a web page; download the file itself"),
        ("a.mp4 0\na.mp4 1\n", None, "line 2: the segment a.mp4 is already in line 1 with another label"),
    ],
)
def test_what_is_not_clear(tmp_path, content, columns, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(annotations.AnnotationError, match=message):
        read(tmp_path / "x.csv", columns=columns)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("a.mp4\nb.mp4\nc.mp4\n", None),
        ('path\na.mp4\nb.mp4\nc.mp4\n"\n', None),
        ("path\na.mp4\nb.mp4\nc.mp4\n", None),
        ("path,start,end\na.mp4,,\nb.mp4,1,2\nc.mp4,,\n", None),
        ("a.mp4,0\nb.mp4,1\nc.mp4,2\n", ("path", "-")),
    ],
)
def test_videos_without_labels(tmp_path, content, columns):
    (tmp_path / "x.csv").write_text(content)
    found = annotations.read(catalog.custom("mine", "csv", columns=columns), tmp_path / "x.csv")
    assert found.class_names == {}
    names = {row.video for rows in found.rows.values() for row in rows}
    assert names - {'"'} == {"a.mp4", "b.mp4", "c.mp4"}  # a lone quote is a name, too
    assert set(found.rows) == {"train", "validation"}


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "val.csv", "test.csv"),
        ("k400_train_list_videos.txt", "k400_val_list_videos.txt", "k400_test_list_videos.txt"),
        ("Train.tsv", "Validation.tsv", "Testing.tsv"),
        ("trainlist01.txt", "vallist01.txt", "testlist01.txt"),
        ("trainSet.csv", "valSet.csv", "testSet.csv"),
    ],
)
def test_a_list_for_each_split(tmp_path, names):
    for name, content in zip(names, ("a.mp4 0\nb.mp4 1\n", "c.mp4 0\n", "c.mp4 0\n"), strict=True):
        (tmp_path / name).write_text(content)
    (tmp_path / "README.txt").write_text("some text")
    rows = read(tmp_path)[0].rows
    assert {split: [row.video for row in of_split] for split, of_split in rows.items()} == {
        "train": ["a.mp4", "b.mp4"],
        "validation": ["c.mp4"],
        "test": ["c.mp4"],
    }


def test_a_test_list_without_labels_is_left_out(tmp_path, caplog):
    for name, content in (("train", "1;up\n2;up\n"), ("validation", "3;up\n"), ("test", "4\n5\n"), ("labels", "up\n")):
        (tmp_path / f"jester-v1-{name}.csv").write_text(content)
    assert set(read(tmp_path)[0].rows) == {"train", "validation"}
    assert "the test split is left out" in caplog.text


def test_several_lists_of_a_split(tmp_path):
    for name in ("ucf101_train_split_1.txt", "ucf101_train_split_2.txt", "ucf101_val_split_1.txt"):
        (tmp_path / name).write_text("a.avi 0\n")
    with pytest.raises(annotations.AnnotationError, match="several lists of the train split, ucf101_train"):
        read(tmp_path)
