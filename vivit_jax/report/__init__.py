"""Renders a run as one HTML file, `report.html` in its workdir; all images are embedded, nothing is fetched.

    python -m vivit_jax.report --workdir=runs/moving_digits

Sources are the files of the run (`config.json`, `metrics.jsonl`, `evaluation.json`, `predictions.csv`,
`init_report.txt`, the newest checkpoint's metadata) and its records; sections without a source are left out.
"""

import jax
from absl import logging
from etils import epath

from vivit_jax.utils import storage

FILE = "report.html"


def make(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into the workdir of a run and returns its path.

    Raises ImportError without the extra `report`, OSError or ValueError for a workdir without a run that can be read.
    """
    from vivit_jax.report import load, page  # here, as training works without the extra

    path = epath.Path(workdir) / FILE
    storage.write(path, page.render(load.read_run(workdir)))
    return path


def write(workdir: epath.PathLike) -> epath.Path | None:
    """Writes the report at the end of a run, from process 0; a failure is only a warning, and returns None."""
    if jax.process_index() != 0:
        return None
    try:
        return make(workdir)
    # Any exception: metrics and checkpoints are already on disk, and the run must still count as finished.
    except Exception as error:
        advice = f"The results of the run are unaffected; retry with python -m vivit_jax.report --workdir={workdir}"
        logging.warning("No report of %s: %s: %s. %s", workdir, type(error).__name__, error, advice)
        return None
