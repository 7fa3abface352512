"""Facts of the data sets as a table: classes, published sizes, annotation files, layouts, where to get them.

    python -m vivit_jax.data.catalog

prints it. Published sizes are for comparison only: what a build finds is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """One data set.

    Attributes:
      name: as in `--dataset=NAME`.
      title: as in the literature.
      heads: label head -> number of classes; a data set with one head calls it "label".
      splits: split -> published number of rows (EPIC-Kitchens: action segments; Kinetics-400 and 600: those of the
        CVDF copy, for 700 those of its paper).
      annotation_format: reader in `annotations`: "kinetics_csv", "epic_csv"; or one that is not written yet.
      annotation_files: split -> file names to look for, the first that exists is read.
      class_files: head -> file of the class names, where the data set has them.
      video_layout: where a video is looked for under the videos' folder, in words.
      source: where to get it, in words.
      short_side: pixels that the shorter side of the stored frames has at most (section "Implementation details" of the
        paper's appendix: 256; Something-Something v2: 288).
      rows_per_shard: rows of the annotations that go into one shard of records.
    """

    name: str
    title: str
    heads: Mapping[str, int]
    splits: Mapping[str, int]
    annotation_format: str
    annotation_files: Mapping[str, tuple[str, ...]]
    video_layout: str
    source: str
    class_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    short_side: int = 256
    rows_per_shard: int = 64


_KINETICS_LAYOUT = (
    "{id}_{start:06d}_{end:06d}.mp4 (or {id}.mp4, which is cut from start to end), in the folder itself, in a folder "
    "per split or per class, or both"
)


def _kinetics(classes: int, **splits: int) -> DatasetFacts:
    number = str(classes)
    return DatasetFacts(
        name=f"kinetics{number}",
        title=f"Kinetics-{number}",
        heads={"label": classes},
        splits=splits,
        annotation_format="kinetics_csv",
        annotation_files={split: tuple(f"{stem}.csv" for stem in _kinetics_stems(number, split)) for split in splits},
        video_layout=_KINETICS_LAYOUT,
        source="https://github.com/cvdfoundation/kinetics-dataset (its download and extract scripts; annotations too)",
    )


def _kinetics_stems(number: str, split: str) -> list[str]:
    names = {"validation": ("val", "validate", "validation")}.get(split, (split,))
    return [
        stem
        for name in names
        for stem in (name, f"kinetics{number}_{name}", f"kinetics_{number}_{name}", f"kinetics_{name}")
    ]


_EPIC_FILES = {
    "train": ("EPIC_100_train.csv",),
    "validation": ("EPIC_100_validation.csv",),
}
_EPIC_CLASSES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}

_TABLE = (
    DatasetFacts(
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
    ),
    _kinetics(400, train=246_534, validation=19_906, test=39_805),
    _kinetics(600, train=427_549, validation=29_793, test=72_924),
    _kinetics(700, train=545_317, validation=35_000, test=70_000),
    DatasetFacts(
        name="moments_in_time",
        title="Moments in Time v1",
        heads={"label": 339},
        splits={"train": 802_264, "validation": 33_900},
        annotation_format="moments_csv",
        annotation_files={"train": ("trainingSet.csv",), "validation": ("validationSet.csv",)},
        class_files={"label": "moments_categories.txt"},
        video_layout="training/{class}/{name}.mp4 and validation/{class}/{name}.mp4",
        source="http://moments.csail.mit.edu (by request form)",
    ),
    DatasetFacts(
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
    DatasetFacts(
        name="something_something_v2",
        title="Something-Something v2",
        heads={"label": 174},
        splits={"train": 168_913, "validation": 24_777, "test": 27_157},
        annotation_format="something_json",
        annotation_files={
            "train": ("something-something-v2-train.json", "train.json"),
            "validation": ("something-something-v2-validation.json", "validation.json"),
        },
        class_files={"label": "something-something-v2-labels.json"},
        video_layout="{id}.webm in the folder itself",
        source="https://www.qualcomm.com/developer/software/something-something-v-2-dataset (by registration)",
        short_side=288,
    ),
)

DATASETS: Mapping[str, DatasetFacts] = MappingProxyType({facts.name: facts for facts in _TABLE})


def get(name: str) -> DatasetFacts:
    """Facts of the data set `name`.

    Raises:
      ValueError: no such data set; the message lists all.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    return DATASETS[name]


def table() -> str:
    """The catalog as text, one block a data set."""
    blocks = []
    for facts in _TABLE:
        heads = ", ".join(f"{head} {count}" for head, count in facts.heads.items())
        splits = ", ".join(f"{split} {count:,}" for split, count in facts.splits.items())
        files = ", ".join(names[0] for names in facts.annotation_files.values())
        blocks.append(
            f"{facts.name}: {facts.title}\n"
            f"  classes      {heads}\n"
            f"  published    {splits}\n"
            f"  annotations  {files} ({facts.annotation_format})\n"
            f"  videos       {facts.video_layout}\n"
            f"  short side   {facts.short_side}\n"
            f"  from         {facts.source}"
        )
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(table())
