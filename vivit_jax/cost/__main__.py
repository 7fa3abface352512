"""Prints the cost of the paper's models beside the published figures, or the cost of one experiment.

python -m vivit_jax.cost
python -m vivit_jax.cost --only=table2,table5 --format=markdown
python -m vivit_jax.cost --plot=pictures
python -m vivit_jax.cost --config=configs/k400_vivit_l.py --config.model.image_size=320
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Print the cost of this experiment instead of the paper's tables.", lock_config=True
)
_ONLY = flags.DEFINE_list("only", None, "Some of table2, table5, figure7, figure8, figure9. Default: all.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "markdown", "csv"], "Format of the tables.")
_PLOT = flags.DEFINE_string("plot", None, "Folder for figure7b.png and figure8b.png.")
_COMPILE = flags.DEFINE_bool("compile", True, "With --config: compile for this machine, for the memory of activations.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is not None and (_ONLY.value or _PLOT.value):
        raise app.UsageError("--only and --plot are about the paper's tables; leave them out with --config")
    # Imported after the flags are parsed, so that --help and a mistyped flag answer at once.
    from vivit_jax.cost import paper, render

    try:
        if _CONFIG.value is not None:
            from vivit_jax.config import experiment
            from vivit_jax.cost import report

            run = experiment.Experiment.from_config(_CONFIG.value)
            print(render.render(report.tables_of(run, compiled=_COMPILE.value, log=log), _FORMAT.value))
            return
        print(render.render(list(paper.tables(_ONLY.value or tuple(paper.TABLES), log)), _FORMAT.value))
        if _PLOT.value:
            from vivit_jax.cost import figures

            for path in figures.save(_PLOT.value):
                log(f"wrote {path}")
    except (ValueError, RuntimeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        logging.debug("Where it came from:", exc_info=True)  # shown with --verbosity=1
        sys.exit(f"error: {error}\n(--verbosity=1 shows where it came from)")


def log(line: str) -> None:
    """Prints progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    app.run(main)


if __name__ == "__main__":
    run()
