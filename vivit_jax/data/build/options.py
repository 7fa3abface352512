"""Options of a build."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How records are built; only the first nine fields change them."""

    kind: str | None = None  # "folder" or "csv" for a custom data set; None for a data set of the catalog
    label_separator: str | None = None  # ";" or "|" in the multi-label fields of a CSV
    columns: Sequence[str] | None = None  # of a CSV, in order: path, label, ...; None: detected
    splits: Sequence[str] | None = None  # the splits to build; None: all
    quality: int = 85  # of the JPEGs, 1 to 95
    short_side: int | None = None  # maximum, in pixels; None: that of the data set
    fps: float | None = None  # maximum, and that of folders of frames; None: that of the source
    max_seconds: float = 21_600.0  # of a file, up to its last segment; a longer one is rejected
    max_gb: float = 32.0  # 2^30 bytes of JPEGs of a file
    num_workers: int | None = None  # decoding processes; None: one per core, 0: none but this one
    runner: str = "local"  # processes of this machine; "direct": Beam on this machine; or another runner of Beam
    runner_flags: Sequence[str] = ()  # of Beam
    progress: bool = True
