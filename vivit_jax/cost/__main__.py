"""Prints the cost of the paper's models beside the published figures, or the cost of one experiment.

python -m vivit_jax.cost
python -m vivit_jax.cost --only=table2,table5
python -m vivit_jax.cost --config=configs/k400_vivit_l.py --config.model.image_size=320
"""

import functools
import sys

from absl import app, flags, logging

from vivit_jax.config import flags as command_line

_CONFIG = command_line.define_config("Print the cost of this experiment instead of the paper's tables.")
_ONLY = flags.DEFINE_list("only", None, "Some of table2, table5, figure7, figure8, figure9. Default: all.")
_COMPILE = flags.DEFINE_bool("compile", True, "With --config: compile for this machine, for the memory of activations.")


def main(argv: list[str]) -> None:
    if _CONFIG.value is not None and _ONLY.value:
        raise app.UsageError("--only is about the paper's tables; leave it out with --config")
    log = functools.partial(print, file=sys.stderr, flush=True)  # progress
    # Imported after the flags are parsed, so that --help and a mistyped flag answer at once.
    from vivit_jax.cost import paper

    with command_line.exit_on(ValueError, RuntimeError, OSError):
        if _CONFIG.value is not None:
            from vivit_jax.config import experiment
            from vivit_jax.cost import report

            run = experiment.Experiment.from_config(_CONFIG.value)
            if run.derive:
                log("The fields that this config leaves open are those for an unknown data set.")
            print(*report.tables_of(run, compiled=_COMPILE.value, log=log), sep="\n\n")
            return
        print(*paper.tables(_ONLY.value or tuple(paper.TABLES), log), sep="\n\n")


if __name__ == "__main__":
    command_line.run(main, verbosity=logging.WARNING)
