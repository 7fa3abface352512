"""Options of a build."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How records are built; only the first six fields change them.

    Attributes:
      kind: "folder" or "csv" for a custom data set; None for a data set of the catalog.
      label_separator: ";" or "|" in the multi-label fields of a CSV.
      splits: the splits to build; None: all.
      quality: of the JPEGs, 1 to 95.
      short_side: maximum short side of the stored frames in pixels; None: that of the data set.
      fps: maximum frames per second; None: those of the source. The frame for each point in time is the last one at or
        before it, and no frame is stored twice.
      num_workers: decoding processes; None: one per core, 0: none but this one.
      runner: "local" for processes of this machine, "direct" for Beam on this machine, or another runner of Beam.
      runner_flags: flags of Beam.
      progress: show a progress bar.
    """

    kind: str | None = None
    label_separator: str | None = None
    splits: Sequence[str] | None = None
    quality: int = 85
    short_side: int | None = None
    fps: float | None = None
    num_workers: int | None = None
    runner: str = "local"
    runner_flags: Sequence[str] = ()
    progress: bool = True
