"""A run told in one file: `report.html` in its workdir, with all pictures inside, to be opened anywhere.

    python -m vivit_jax.report --workdir=runs/moving_digits

Made from what the run left (`config.json`, `metrics.jsonl`, `evaluation.json`, `predictions.csv`, `init_report.txt`,
the newest checkpoint's description) and from the records of its data set where they still are; what is missing is left
out.
"""

from __future__ import annotations

import jax
from absl import logging
from etils import epath

from vivit_jax.report import load, page

FILE = "report.html"


def make(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into a run's workdir; returns its path.

    Raises:
      FileNotFoundError: no run has left anything there.
      OSError, ValueError: files of the run that cannot be read, or the report cannot be written.
    """
    path = epath.Path(workdir) / FILE
    path.write_text(page.render(load.read_run(workdir)))
    return path


def write(workdir: epath.PathLike) -> epath.Path | None:
    """`make` at the end of a run: by process 0 alone, and a report that fails is a warning, not the end of the run.

    Returns:
      The path of the report; None where none was written.
    """
    if jax.process_index() != 0:
        return None
    try:
        return make(workdir)
    # Whatever it is: the run's numbers and checkpoints are on disk, and must not be taken for lost.
    except Exception as error:
        logging.warning(
            "No report of %s: %s: %s. The run's results are not touched; try again with "
            "python -m vivit_jax.report --workdir=%s",
            workdir, type(error).__name__, error, workdir,
        )  # fmt: skip
        return None
