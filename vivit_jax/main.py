"""Flags -> processes -> config -> train or evaluate. Nothing else.

python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits
python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits --mode=eval
python -m vivit_jax.main --config=configs/k400_vivit_l.py --workdir=gs://bucket/run --config.batch_size=128

The same command on every host of a TPU slice, under Slurm or Open MPI makes one run (docs/launch.md).
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vivit_jax.config import flags as command_line

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
_WEIGHTS = flags.DEFINE_enum(
    "weights", "params", ["params", "ema"], "With --mode=eval: the parameters, or their average (optimizer.ema_decay)."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Several processes find each other on TPU slices, under Slurm and Open MPI, else by the flags below. 'on': also a "
    "single process is set up as one of several would be, so that SIGTERM saves the step.",
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # After the flags are parsed, so that --help and a mistyped flag answer at once.
    from vivit_jax import checkpoint as checkpointing
    from vivit_jax import distributed
    from vivit_jax.config import experiment
    from vivit_jax.utils import logs

    logs.configure_logging()
    with distributed.synchronized_exit():
        try:
            distributed.initialise(_DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            run = experiment.Experiment.from_config(_CONFIG.value)
            if _MODE.value == "train":
                from vivit_jax.train import train

                found = train(run, _WORKDIR.value)
                logging.info("Done: %s", ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
            else:
                from vivit_jax.evaluation.evaluate import evaluate

                chosen = {"which": _WHICH.value, "weights": _WEIGHTS.value}
                summary = evaluate(run, _WORKDIR.value, _CHECKPOINT.value, **chosen).summary()
                if distributed.is_primary():
                    print(summary)
        except distributed.Preempted as stop:
            logging.warning("%s", stop)
            raise
        except (ValueError, FileNotFoundError, MemoryError, FloatingPointError, checkpointing.CheckpointError) as error:
            logging.debug("Where it came from:", exc_info=True)  # shown with --verbosity=1
            sys.exit(f"error: {error}\n(--verbosity=1 shows where it came from)")


def run() -> None:
    """Entry point."""
    logging.set_verbosity(logging.INFO)
    command_line.run(main, required=("config", "workdir"))


if __name__ == "__main__":
    run()
