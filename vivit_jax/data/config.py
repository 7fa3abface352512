"""The data section of a config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from vivit_jax.data.selection.subset import UNKNOWN_CLASSES, Subset
from vivit_jax.utils.checks import at_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and where.

    Attributes:
      name: as in `python -m vivit_jax.data.catalog`; the one that is evaluated.
      dir: folder of the prepared records, DIR/NAME/VERSION; the embedded data set is made there where it is absent.
      videos: a folder of one's own videos, by class, or beside a CSV (docs/data.md); its records are made under `dir`
        where they are absent, under a `name` that the catalog does not have. None: the records are there.
      annotations: the CSV of these videos, where it does not lie beside them.
      label_separator: ';' or '|', between the labels of a video of that CSV; a column that has it is a head with
        several labels at once.
      train_split, eval_split: names of splits.
      mixture: {name: weight}: data sets under `dir` that are trained on, each with a share of the clips in proportion
        to its weight. {} for `name` alone. Heads and class ids are those of `name`, by the names of the classes.
      unknown_classes: of a mixture, classes that `name` does not have: 'refuse' is an error with the list, 'drop'
        leaves their videos out, 'union' adds them to the heads.
      subset: the part of the data that is used; its `classes` hold for evaluation too.
      cache: keep the records of the training splits in memory.
      cache_gb: memory that the cache may take, in units of 2^30 bytes.
      threads: clips made at the same time; None for one a core.
      prefetch: batches made ahead.
      service: 'grpc://host:port', several with commas, of machines that make the training clips (docs/data.md).
    """

    name: str = "kinetics400"
    dir: str = "data"
    videos: str | None = None
    annotations: str | None = None
    label_separator: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unknown_classes: str = "refuse"
    subset: Subset = dataclasses.field(default_factory=Subset)
    cache: bool = False
    cache_gb: float = 2.0
    threads: int | None = None
    prefetch: int = 2
    service: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.subset, Mapping):
            object.__setattr__(self, "subset", Subset(**self.subset))
        at_least("data", self, cache_gb=0, prefetch=1, threads=1)
        for name, weight in self.mixture.items():
            if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"data.mixture[{name!r}]={weight!r} must be a number greater than 0")
        if self.unknown_classes not in UNKNOWN_CLASSES:
            raise ValueError(
                f"data.unknown_classes={self.unknown_classes!r}; choose one of {', '.join(UNKNOWN_CLASSES)}"
            )
        if self.service is not None and self.cache:
            raise ValueError("data.cache and data.service exclude each other: the service makes the clips elsewhere")
        if self.annotations is not None and self.videos is None:
            raise ValueError(f"data.annotations={self.annotations!r} is of one's own videos: give data.videos too")
        if self.label_separator is not None and self.videos is None:
            raise ValueError(f"data.label_separator={self.label_separator!r} is of one's own CSV: give data.videos too")
