"""Where the checkpoints of a run are, and how their metrics compare."""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from vivit_jax.checkpoint.integrity import CheckpointError
from vivit_jax.utils import storage, terminal

FOLDER = "checkpoints"  # inside a run's workdir
QUARANTINE_DIR = "damaged"  # beside the folder of steps
STATE, META = "state", "meta"


def score(metrics: Mapping[str, Any] | None, name: str) -> float:
    """Returns the value of a metric such that higher is better (losses are negated); -inf where absent or NaN."""
    value = float((metrics or {}).get(name, math.nan))
    if math.isnan(value):
        return -math.inf
    return -value if name.rpartition("/")[2] == "loss" else value


def absolute(path: epath.PathLike) -> epath.Path:
    """Orbax silently finds nothing under a relative path. URIs stay as they are; `resolve` would prepend the folder."""
    absolute = str(storage.absolute(path))
    if absolute != terminal.printable(absolute):
        raise CheckpointError(f"{absolute}: Orbax opens no paths that are not UTF-8; rename the folder or link to it")
    return epath.Path(absolute)


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """Finds checkpoints: a workdir, its `checkpoints` folder or one step -> (folder of steps, step or None)."""
    path = absolute(path)
    for root in (path / FOLDER, path):
        if root.is_dir() and any(child.name.isdigit() for child in root.iterdir()):
            return root, None
    if path.name.isdigit() and (path / STATE).exists():
        return path.parent, int(path.name)
    advice = "Give the --workdir of a run that has saved one, or --checkpoint=WORKDIR/checkpoints/STEP."
    raise CheckpointError(f"no checkpoint at {path}; looked for {path / FOLDER}/STEP and {path}/STEP. {advice}")
