"""The data section of a config."""

import dataclasses
from collections.abc import Mapping

from vivit_jax.data.selection.subset import UNKNOWN_CLASSES, Subset
from vivit_jax.utils.checks import at_least, one_of, within


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """How the input pipeline runs; no option but `resize_on_device` changes a batch.

    Attributes:
      max_unreadable: share of the training videos that may have broken records, whose clips are masked (one video is
        always allowed, except by 0), and of the videos of an evaluation; beyond that the program fails.
      resize_on_device: the accelerators resize and flip the training clips; the host sends windows of the stored
        frames (`augment.resize_windows`). For hosts with few cores (docs/performance.md).
    """

    cache: bool = False  # keep the training splits' decoded frames in memory, up to `cache_gb` * 2^30 bytes
    cache_gb: float = 2.0
    threads: int | None = None  # clips decoded in parallel; None for one per core
    prefetch: int = 2  # batches prepared ahead
    max_unreadable: float = 0.01
    resize_on_device: bool = False

    def __post_init__(self) -> None:
        at_least("data", self, cache_gb=0, prefetch=1, threads=1)
        within("data", self, "[0, 1]", "max_unreadable")


@dataclasses.dataclass(frozen=True)
class DataConfig(PipelineOptions):
    """Which data sets are used, where they are, and how the input pipeline runs.

    Attributes:
      dir: folder of the prepared records, DIR/NAME/VERSION. The embedded data set is built there where it is missing.
      video_dir: folder of a custom data set: one folder per class, or videos beside a CSV (docs/data.md). Its records
        are built under `dir` where they are missing, under a `name` that the catalog does not have.
      columns: of `annotations` in order, where its header does not tell: "path,label"; - for one that is not used.
      mixture: {name: weight}: data sets under `dir` to train on, each with a share of the clips in proportion to its
        weight. {} for `name` alone. Heads and class ids are those of `name`, matched by class name.
      unknown_classes: of a mixture, which `name` does not have: 'error', 'drop' (their videos), 'union' (of the heads).
      subset: the part of the data to use; its `classes` hold for evaluation too.
      allow_changed: a run may resume on other records under the same name than those of its checkpoints, and with
        another batch size, which leaves clips out or repeats some.
    """

    name: str = "kinetics400"  # data set, as in `python -m vivit_jax.data.catalog`; the one that is evaluated
    dir: str = "data"
    video_dir: str | None = None
    annotations: str | None = None  # CSV of a custom data set, if it is not in `video_dir`
    label_separator: str | None = None  # ';' or '|' in a column of that CSV makes it a multi-label head
    columns: str | None = None
    fps: float | None = None  # maximum frames per second of custom records; of folders of frames, their rate
    train_split: str = "train"
    eval_split: str = "validation"
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unknown_classes: str = "error"
    subset: Subset = dataclasses.field(default_factory=Subset)
    allow_changed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.subset, Mapping):
            object.__setattr__(self, "subset", Subset(**self.subset))
        for name, weight in self.mixture.items():
            if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                raise ValueError(f"data.mixture[{name!r}]={weight!r} must be a number greater than 0")
        one_of("data", self, unknown_classes=UNKNOWN_CLASSES)
        for field in ("annotations", "label_separator", "columns", "fps"):
            if getattr(self, field) is not None and self.video_dir is None:
                value = f"data.{field}={getattr(self, field)!r}"
                raise ValueError(f"{value} is for a custom data set: set data.video_dir too")
