"""Facts of the data sets as a table: classes, published sizes, annotation files, layouts, where to get them.

    python -m vivit_jax.data.catalog

prints it. Published sizes are for comparison only: what a build finds is counted.

Anyone's own videos have no entry; they are of one of two kinds, "folder" (a folder per class) or "csv", and go by a
name that the user chooses:

* `custom(name, kind)`: the facts to build `name` with.
* `of_records(name, folder)`: the facts of the data set whose records are in `folder`, own or of the catalog.
* `get(name)`: of the catalog only.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from vivit_jax.data.paths import CLASS_NAMES_FILE, SUMMARY_FILE
from vivit_jax.utils import storage


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
      name: as in `--dataset=NAME`; for one's own, as in `--name=NAME`.
      title: as in the literature.
      heads: label head -> number of classes; a data set with one head calls it "label". Empty where only the files
        know (one's own, before it is built).
      splits: split -> published number of rows (EPIC-Kitchens: action segments; Kinetics-400 and 600: those of the
        CVDF copy, for 700 those of its paper). Splits without an entry are counted only.
      annotation_format: reader in `annotations`.
      annotation_files: split -> file names to look for, the first that exists is read. A name with `*` means all
        files that fit it.
      class_files: head -> names of the file of the class names, where the data set has them.
      video_layout: where a video is looked for under the videos' folder, in words.
      source: where to get it, in words.
      replacements: folders of files that are taken instead of those of the same name, as they were published later.
      short_side: pixels that the shorter side of the stored frames has at most (section "Implementation details" of the
        paper's appendix: 256; Something-Something v2: 288).
      rows_per_shard: rows of the annotations that go into one shard of records.
      label_separator: between the labels of a video, where a CSV gives several at once; None where it never does.
      multi_label: heads with several labels at once, of records that are there.
      mirrored: head -> class -> class of its mirror image, left and right exchanged, both ways; None for a class whose
        mirror image belongs to none. For what the names do not tell: see `mirror`.
    """

    name: str
    title: str
    heads: Mapping[str, int]
    splits: Mapping[str, int]
    annotation_format: str
    annotation_files: Mapping[str, tuple[str, ...]]
    video_layout: str
    source: str
    class_files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    replacements: tuple[str, ...] = ()
    short_side: int = 256
    rows_per_shard: int = 64
    label_separator: str | None = None
    multi_label: Sequence[str] = ()
    mirrored: Mapping[str, Mapping[str, str | None]] = dataclasses.field(default_factory=dict)


_KINETICS_LAYOUT = (
    "{id}_{start:06d}_{end:06d}.mp4 (or {id}.mp4, which is cut from start to end), in the folder itself or below, as "
    "in train/ and val/ or a folder per class"
)


def _kinetics(classes: int, **splits: int) -> DatasetInfo:
    number = str(classes)
    return DatasetInfo(
        name=f"kinetics{number}",
        title=f"Kinetics-{number}",
        heads={"label": classes},
        splits=splits,
        annotation_format="kinetics_csv",
        # CVDF's train and val of Kinetics-600 are .txt files.
        annotation_files={
            split: tuple(f"{stem}{suffix}" for suffix in (".csv", ".txt") for stem in _kinetics_stems(number, split))
            for split in splits
        },
        video_layout=_KINETICS_LAYOUT,
        # Some 1,400 files of the first copy are damaged; CVDF published whole ones later (its README).
        replacements=("replacement_for_corrupted_k400",) if classes == 400 else (),
        source="https://github.com/cvdfoundation/kinetics-dataset (its download and extract scripts; annotations too)",
    )


def _kinetics_stems(number: str, split: str) -> list[str]:
    names = {"validation": ("val", "validate", "validation")}.get(split, (split,))
    return [
        stem
        for name in names
        for stem in (name, f"kinetics{number}_{name}", f"kinetics_{number}_{name}", f"kinetics_{name}")
    ]


def _ucf101(number: int, train: int, test: int) -> DatasetInfo:
    names = {"train": f"trainlist{number:02d}.txt", "validation": f"testlist{number:02d}.txt"}
    return DatasetInfo(
        name="ucf101" if number == 1 else f"ucf101_split{number}",
        title=f"UCF101, split {number} of 3",
        heads={"label": 101},
        splits={"train": train, "validation": test},
        annotation_format="ucf_lists",
        annotation_files={split: (name, f"ucfTrainTestlist/{name}") for split, name in names.items()},
        class_files={"label": ("classInd.txt", "ucfTrainTestlist/classInd.txt")},
        video_layout="{class}/{name}.avi or {name}.avi, in the folder itself or below, as in UCF-101/",
        source="https://www.crcv.ucf.edu/data/UCF101.php (its test list is the validation split here)",
    )


def _hmdb51(number: int) -> DatasetInfo:
    name = f"*_test_split{number}.txt"
    files = (name, f"testTrainMulti_7030_splits/{name}")
    return DatasetInfo(
        name="hmdb51" if number == 1 else f"hmdb51_split{number}",
        title=f"HMDB51, split {number} of 3",
        heads={"label": 51},
        splits={"train": 51 * 70, "validation": 51 * 30},
        annotation_format="hmdb_lists",
        annotation_files={"train": files, "validation": files},
        video_layout="{class}/{name}.avi or {name}.avi, in the folder itself or below",
        source="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database (its test marks are the "
        "validation split here)",
    )


_EPIC_FILES = {
    "train": ("EPIC_100_train.csv",),
    "validation": ("EPIC_100_validation.csv",),
}
_EPIC_CLASSES = {"verb": ("EPIC_100_verb_classes.csv",), "noun": ("EPIC_100_noun_classes.csv",)}

_TABLE = (
    DatasetInfo(
        name="moving_digits",
        title="moving_digits (made here)",
        heads={"verb": 8, "noun": 10},
        splits={"train": 2400, "validation": 480},
        annotation_format="epic_csv",
        annotation_files=_EPIC_FILES,
        class_files=_EPIC_CLASSES,
        video_layout="{video_id}.mp4 in the folder itself",
        source="python -m vivit_jax.data.moving_digits --out=DIR",
        rows_per_shard=600,
        # Up and down, growing and shrinking are their own mirror images; a mirrored digit is still called by its name.
        mirrored={
            "verb": {
                "move-left": "move-right",
                "move-right": "move-left",
                "circle-clockwise": "circle-anticlockwise",
                "circle-anticlockwise": "circle-clockwise",
            }
        },
    ),
    _kinetics(400, train=246_534, validation=19_906, test=39_805),
    _kinetics(600, train=427_549, validation=29_793, test=72_924),
    _kinetics(700, train=545_317, validation=35_000, test=70_000),
    DatasetInfo(
        name="moments_in_time",
        title="Moments in Time v1",
        heads={"label": 339},
        splits={"train": 802_264, "validation": 33_900},
        annotation_format="moments_csv",
        annotation_files={"train": ("trainingSet.csv",), "validation": ("validationSet.csv",)},
        class_files={"label": ("moments_categories.txt",)},
        video_layout="training/{class}/{name}.mp4 and validation/{class}/{name}.mp4",
        source="http://moments.csail.mit.edu (by request form)",
    ),
    DatasetInfo(
        name="epic_kitchens100",
        title="EPIC-Kitchens-100",
        heads={"verb": 97, "noun": 300},
        splits={"train": 67_217, "validation": 9_668},
        annotation_format="epic_csv",
        annotation_files=_EPIC_FILES,
        class_files=_EPIC_CLASSES,
        video_layout="{participant}/videos/{video_id}.MP4, {participant}/{video_id}.MP4 or {video_id}.MP4",
        source="annotations: https://github.com/epic-kitchens/epic-kitchens-100-annotations; videos: "
        "https://github.com/epic-kitchens/epic-kitchens-download-scripts",
    ),
    DatasetInfo(
        name="something_something_v2",
        title="Something-Something v2",
        heads={"label": 174},
        splits={"train": 168_913, "validation": 24_777, "test": 27_157},
        annotation_format="something_json",
        annotation_files={
            "train": ("something-something-v2-train.json", "train.json"),
            "validation": ("something-something-v2-validation.json", "validation.json"),
        },
        class_files={"label": ("something-something-v2-labels.json", "labels.json")},
        video_layout="{id}.webm in the folder itself or below, as in 20bn-something-something-v2/",
        source="https://www.qualcomm.com/developer/software/something-something-v-2-dataset (by registration)",
        short_side=288,
    ),
    *(
        _ucf101(number, train, test)
        for number, train, test in ((1, 9_537, 3_783), (2, 9_586, 3_734), (3, 9_624, 3_696))
    ),
    *(_hmdb51(number) for number in (1, 2, 3)),
)

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType({dataset.name: dataset for dataset in _TABLE})


_CUSTOM_SOURCE = "your own files"
# Kind -> (layout of the videos, annotation files) of data sets that are nobody's but the user's.
CUSTOM_KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "folder": (
            "train/{class}/*.mp4 and val/{class}/*.mp4 (or validation/, test/); without such folders {class}/*.mp4, of "
            "which a tenth, by a hash of the name, is the validation split",
            "none: the folders are the labels",
        ),
        "csv": (
            "the paths in the CSV, absolute or under the videos' folder",
            "one .csv with a header: path,label[,start,end,split]; label_VERB, label_NOUN, ... make several heads; "
            "with --label_separator=';' (or '|') a video may have several labels of a head at once",
        ),
    }
)
# Between several labels of one video.
LABEL_SEPARATORS = (";", "|")
_CUSTOM_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def get(name: str) -> DatasetInfo:
    """Facts of the data set `name` of the catalog.

    Raises:
      ValueError: no such data set; the message lists all.
    """
    if name in CUSTOM_KINDS:
        raise ValueError(
            f"{name!r} is a kind of one's own data, not a data set: --dataset={name} --name=NAME builds one"
        )
    if name not in DATASETS:
        raise ValueError(
            f"unknown data set {name!r}; known are {', '.join(DATASETS)}. One's own are built with "
            f"--dataset={'|'.join(CUSTOM_KINDS)} --name=NAME"
        )
    return DATASETS[name]


def custom(name: str, kind: str, short_side: int = 256, label_separator: str | None = None) -> DatasetInfo:
    """Facts to build one's own data set with; its heads and sizes are what the files say.

    Args:
      name: chosen by the user: lower-case letters, digits and "_", a letter first; not one of the catalog.
      kind: "folder" or "csv".
      short_side: pixels that the shorter side of the stored frames has at most.
      label_separator: ";" or "|", between several labels in one field of a CSV; None where the labels are single.

    Raises:
      ValueError: another kind, a name that cannot be used, a short side below 1, or another separator, or one for a
        folder.
    """
    if kind not in CUSTOM_KINDS:
        raise ValueError(f"kind {kind!r} of one's own data; known are {', '.join(CUSTOM_KINDS)}")
    if name in DATASETS or name in CUSTOM_KINDS:
        raise ValueError(f"the name {name!r} is taken (see python -m vivit_jax.data.catalog): choose another --name")
    if not _CUSTOM_NAME.fullmatch(name):
        raise ValueError(
            f"--name={name!r}: a name has 1 to 64 lower-case letters, digits and underscores, a letter first"
        )
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; it must be at least 1 pixel")
    if label_separator is not None and (kind != "csv" or label_separator not in LABEL_SEPARATORS):
        raise ValueError(
            f"label_separator is {label_separator!r} for a {kind}; it is for a csv, and one of "
            f"{' '.join(LABEL_SEPARATORS)}"
        )
    layout, _ = CUSTOM_KINDS[kind]
    return DatasetInfo(
        name=name,
        title=f"{name} (your own, {kind})",
        heads={},
        splits={},
        annotation_format=kind,
        annotation_files={},
        video_layout=layout,
        source=_CUSTOM_SOURCE,
        short_side=short_side,
        label_separator=label_separator,
    )


def of_records(name: str, folder: storage.Place) -> DatasetInfo:
    """Facts of the data set whose records are in `folder` (DATA_DIR/NAME/VERSION).

    Those of the catalog where it has `name`; of another name, its heads as the records have them. The short side is
    that of the records, where they are there.

    Raises:
      ValueError: not in the catalog, and no records in `folder`.
    """
    folder = storage.path(folder)
    classes, summary = folder / CLASS_NAMES_FILE, folder / SUMMARY_FILE
    # Records of others that are only indexed have no summary.
    stored = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    if name in DATASETS:
        dataset = DATASETS[name]
    elif classes.is_file():
        heads = {head: len(names) for head, names in json.loads(classes.read_text(encoding="utf-8")).items()}
        dataset = DatasetInfo(name, f"{name} (your own)", heads, {}, "", {}, "already in records", _CUSTOM_SOURCE)
    else:
        raise ValueError(
            f"data set {name!r} is not in the catalog ({', '.join(DATASETS)}), and {folder} holds no records of it: "
            f"python -m vivit_jax.data.build --dataset={'|'.join(CUSTOM_KINDS)} --name={name} --videos=DIR makes them"
        )
    known = {name: stored[name] for name in ("short_side", "multi_label") if stored.get(name)}
    return dataclasses.replace(dataset, **known) if known else dataset


def table() -> str:
    """The catalog as text, one block a data set."""
    blocks = []
    for dataset in _TABLE:
        heads = ", ".join(f"{head} {count:,}" for head, count in dataset.heads.items())
        splits = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
        files = [names[0] for names in dataset.annotation_files.values()]
        files += [names[0] for names in dataset.class_files.values()]
        blocks.append(
            f"{dataset.name}: {dataset.title}\n"
            f"  classes      {heads}\n"
            f"  published    {splits}\n"
            f"  annotations  {', '.join(dict.fromkeys(files))} ({dataset.annotation_format})\n"
            f"  videos       {dataset.video_layout}\n"
            f"  short side   {dataset.short_side}\n"
            f"  from         {dataset.source}"
        )
    for kind, (layout, files) in CUSTOM_KINDS.items():
        blocks.append(
            f"{kind}: your own, --dataset={kind} --name=NAME\n"
            "  classes      counted\n"
            "  published    nothing: counted\n"
            f"  annotations  {files}\n"
            f"  videos       {layout}\n"
            f"  from         {_CUSTOM_SOURCE}"
        )
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(table())
