"""Flags -> config -> train or evaluate. Nothing else.

python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits
python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits --mode=eval
python -m vivit_jax.main --config=configs/k400_vivit_l.py --workdir=gs://bucket/run --config.batch_size=128
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; any field can be overridden, e.g. --config.batch_size=16.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and pictures go, and are looked for.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (or go on training), or evaluate a checkpoint.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --mode=eval: a workdir or one step, WORKDIR/checkpoints/STEP. Default: --workdir.",
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "With --mode=eval: which of a run's checkpoints.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # After the flags are parsed, so that --help and a mistyped flag answer at once.
    from vivit_jax import checkpointing, experiment, logs

    logs.set_up()
    try:
        run = experiment.Experiment.from_config(_CONFIG.value)
        if _MODE.value == "train":
            from vivit_jax.train import train

            found = train(run, _WORKDIR.value)
            logging.info("Done: %s", ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        else:
            from vivit_jax.evaluate import evaluate

            print(evaluate(run, _WORKDIR.value, _CHECKPOINT.value, which=_WHICH.value).summary())
    except (ValueError, FileNotFoundError, checkpointing.CheckpointError, FloatingPointError) as error:
        logging.debug("Where it came from:", exc_info=True)  # shown with --verbosity=1
        sys.exit(f"error: {error}\n(--verbosity=1 shows where it came from)")


def run() -> None:
    """Entry point."""
    flags.mark_flags_as_required(["config", "workdir"])
    logging.set_verbosity(logging.INFO)
    app.run(main)


if __name__ == "__main__":
    run()
