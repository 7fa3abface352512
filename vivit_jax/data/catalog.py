"""Catalog of the data sets in catalog.toml: classes, published sizes, annotation files, layouts, sources.

`python -m vivit_jax.data.catalog` prints it. Published sizes are for comparison only: a build counts its videos.

A custom data set has no entry: `custom` describes it for a build, `of_records` once it is built. It is of one of two
kinds, "folder" (a folder per class) or "csv", and the user chooses its name.
"""

import argparse
import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vivit_jax.data.paths import CLASS_NAMES_FILE, SUMMARY_FILE, read_summary
from vivit_jax.utils import storage


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Description of one data set."""

    name: str  # as in `--dataset=NAME`; of a custom data set as in `--name=NAME`
    title: str  # as in the literature
    heads: Mapping[str, int]  # label head -> classes; a single head is "label"; {} before a custom data set is built
    splits: Mapping[str, int]  # split -> published rows (Kinetics-400, 600: CVDF's copy, 700: paper; EPIC: segments)
    annotation_format: str  # key of `annotations.READERS`
    annotation_files: Mapping[str, Sequence[str]]  # split -> names, of which the first that exists is read; `*`: all
    video_layout: str  # text for messages, as is `source`
    source: str
    class_files: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # head -> possible names
    replacements: Sequence[str] = ()  # folders whose files replace those of the same name, as later published
    short_side: int = 256  # maximum, of the stored frames, in pixels; from the paper's implementation details
    rows_per_shard: int = 64
    label_separator: str | None = None  # of the labels of a multi-label field in a CSV; None: no such fields
    columns: Sequence[str] | None = None  # roles of the columns of a CSV in order; None: detected
    multi_label: Sequence[str] = ()  # heads, once built
    version: int | None = None  # of a generated data set, increased whenever its generator's output changes


def _kinetics_files(classes: int, splits: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of annotation files; spellings as kinetics-400_train.csv are found too (`parsing.first`)."""
    prefixes = (f"kinetics{classes}", f"kinetics_{classes}", "kinetics", f"k{classes}")
    file_names = {}  # CVDF's train and val of Kinetics-600 are .txt files
    for split in splits:
        names = ("val", "validate", "validation") if split == "validation" else (split,)
        stems = [stem for name in names for stem in (name, *(f"{p}_{name}" for p in prefixes))]
        stems += [f"{stem}{ending}" for ending in ("_list", "_list_videos", "_videos") for stem in stems]
        file_names[split] = [f"{stem}{suffix}" for suffix in (".csv", ".txt") for stem in stems]
    return file_names


_TEXT = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
_ENTRIES = tomllib.loads(_TEXT)
# Kind of a custom data set -> (layout of the videos, annotation files), texts for messages.
CUSTOM_KINDS = {kind: (of_kind["videos"], of_kind["annotations"]) for kind, of_kind in _ENTRIES.pop("custom").items()}
for _entry in _ENTRIES.values():
    if _entry["annotation_format"] == "kinetics_csv":
        _entry["annotation_files"] = _kinetics_files(_entry["heads"]["label"], _entry["splits"])
DATASETS: Mapping[str, DatasetInfo] = {name: DatasetInfo(name, **entry) for name, entry in _ENTRIES.items()}

_CUSTOM_SOURCE = "your files"
_CUSTOM_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def get(name: str) -> DatasetInfo:
    """Returns the entry `name`; raises ValueError, which lists all names, if there is none."""
    if name not in DATASETS:
        advice = f"Build a custom data set with --dataset={'|'.join(CUSTOM_KINDS)} --name=NAME"
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}. {advice}")
    return DATASETS[name]


def custom(
    name: str, kind: str, label_separator: str | None = None, columns: Sequence[str] | None = None
) -> DatasetInfo:
    """Describes a custom data set of a kind ("folder" or "csv") for a build, which reads its heads from the files."""
    if name in DATASETS or name in CUSTOM_KINDS:
        advice = "choose another with --name (config.data.name)"
        raise ValueError(f"the name {name!r} is taken (see python -m vivit_jax.data.catalog): {advice}")
    if not _CUSTOM_NAME.fullmatch(name):
        raise ValueError(f"--name={name!r}: use 1 to 64 lower-case letters, digits and underscores, a letter first")
    if label_separator is not None and (kind != "csv" or label_separator not in (";", "|")):
        raise ValueError(f"label_separator is {label_separator!r} for a {kind}; it is for a csv, and one of ; |")
    if columns is not None and (kind != "csv" or "path" not in columns):
        raise ValueError(f"columns is {','.join(columns)} for a {kind}; it is for a csv, with a path, as path,label")
    title, layout = f"{name} (custom, {kind})", CUSTOM_KINDS[kind][0]
    options = {"label_separator": label_separator, "columns": columns}
    return DatasetInfo(name, title, {}, {}, kind, {}, layout, _CUSTOM_SOURCE, **options)


def of_records(name: str, folder: storage.PathLike) -> DatasetInfo:
    """Describes the data set whose records are in `folder` (DATA_DIR/NAME/VERSION).

    This is the entry of the catalog, or for another name a description of the records, which must exist. Where they
    exist, heads, short side and multi-label heads are theirs: they may differ from the catalog's (other releases,
    parts of a data set). Raises ValueError, also for records of another version.
    """
    folder = storage.path(folder)
    classes_file, summary = folder / CLASS_NAMES_FILE, read_summary(folder)
    if name in DATASETS and summary and summary.get("version") != DATASETS[name].version:
        found = f"version {summary.get('version', '2 or earlier')} of {name}, and this program needs version"
        remedy = f"delete {folder.parent} to generate the data set again, or set another data.dir"
        raise ValueError(f"{folder} holds {found} {DATASETS[name].version}: {remedy}")
    built_with = {key: summary[key] for key in ("short_side", "multi_label") if summary.get(key)}
    if classes_file.is_file():
        try:
            names = json.loads(classes_file.read_text(encoding="utf-8"))
            built_with["heads"] = {head: len(of_head) for head, of_head in names.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{classes_file} is damaged ({error!r}): copy it again, or rebuild the records") from error
    if name not in DATASETS and not summary:
        build = f"python -m vivit_jax.data.build --dataset={'|'.join(CUSTOM_KINDS)} --name={name} --videos=DIR"
        unknown = f"data set {name!r} is not in the catalog ({', '.join(DATASETS)})"
        raise ValueError(f"{unknown}, and {folder} holds no records of it (no {SUMMARY_FILE}); build them: {build}")
    of_files = DatasetInfo(name, f"{name} (custom)", {}, {}, "", {}, "already in records", _CUSTOM_SOURCE)
    dataset = DATASETS.get(name, of_files)
    return dataclasses.replace(dataset, **built_with) if built_with else dataset


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m vivit_jax.data.catalog", description="Lists the data sets.").parse_args()
    print(_TEXT, end="")
