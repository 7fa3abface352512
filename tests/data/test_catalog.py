"""The catalog entries, and the names of custom data sets."""

import json
import runpy
import sys

import pytest

from vivit_jax.data import annotations, catalog


def test_entries_are_complete(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["catalog"])
    runpy.run_path(catalog.__file__, run_name="__main__")
    text = capsys.readouterr().out
    for name, dataset in catalog.DATASETS.items():
        assert f'[{name}]\ntitle = "{dataset.title}"' in text
        assert dataset.annotation_format in annotations.READERS
        assert "label" in dataset.heads or len(dataset.heads) > 1
        assert {"train", "validation"} <= set(dataset.annotation_files) & set(dataset.splits)
    for kind in catalog.CUSTOM_KINDS:
        assert f"--dataset={kind} --name=NAME" in text
        assert kind in annotations.READERS


def test_published_numbers():
    heads = {name: dataset.heads for name, dataset in catalog.DATASETS.items()}
    assert heads["kinetics400"] == {"label": 400}
    assert heads["moments_in_time"] == {"label": 339}
    assert heads["epic_kitchens100"] == {"verb": 97, "noun": 300}
    assert heads["something_something_v2"] == {"label": 174}
    assert catalog.get("something_something_v2").short_side == 288
    # The three splits of UCF101 are of the same 13,320 videos; HMDB51 takes 70 and 30 of each class.
    assert {sum(catalog.get(f"ucf101{x}").splits.values()) for x in ("", "_split2", "_split3")} == {13_320}
    assert catalog.get("hmdb51_split2").splits == {"train": 3_570, "validation": 1_530}


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown data set 'kinetics'; known are moving_digits, .*--name=NAME"):
        catalog.get("kinetics")


def test_custom():
    dataset = catalog.custom("cats_2", "csv")
    assert (dataset.name, dataset.heads, dataset.annotation_format, dataset.short_side) == ("cats_2", {}, "csv", 256)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("kinetics400", "csv", "the name 'kinetics400' is taken"),
        ("Cats", "folder", "lower-case letters"),
        ("cats-2", "folder", "lower-case letters"),
        ("../cats", "folder", "lower-case letters"),
        ("cats\n", "folder", "lower-case letters"),
    ],
)
def test_invalid_custom_names(name, kind, message):
    with pytest.raises(ValueError, match=message):
        catalog.custom(name, kind)


def test_of_records(tmp_path):
    assert catalog.of_records("kinetics400", tmp_path) is catalog.get("kinetics400")
    for names in (None, {"verb": ["a", "b"], "noun": ["c"]}):  # without a summary, incomplete
        if names:
            (tmp_path / "class_names.json").write_text(json.dumps(names))
        with pytest.raises(
            ValueError, match=r"'cats' is not in the catalog .*, and .* holds no records .*summary\.json"
        ):
            catalog.of_records("cats", tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"splits": {}, "short_side": 160}))
    cats = catalog.of_records("cats", tmp_path)
    assert (cats.heads, cats.short_side) == ({"verb": 2, "noun": 1}, 160)
    kinetics = catalog.of_records("kinetics400", tmp_path)
    assert (kinetics.heads, kinetics.short_side) == ({"verb": 2, "noun": 1}, 160), "as built"
    for damaged in ('{"label": ["a"', '["a"]', '{"label": 2}'):
        (tmp_path / "class_names.json").write_text(damaged)
        with pytest.raises(ValueError, match=rf"{tmp_path}/class_names\.json is damaged"):
            catalog.of_records("cats", tmp_path)
