"""Trains or evaluates a model.

python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits
python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits --mode=eval
python -m vivit_jax.main --config=k400_vivit_l --workdir=gs://bucket/run --config.batch_size=128

Run the same command on every host of a TPU slice, under Slurm or Open MPI for one run on all of them (docs/launch.md).
"""

from absl import flags, logging

from vivit_jax.config import flags as command_line

_CONFIG = command_line.define_config(
    "Config: a file, or the name of a packaged config (k400_vivit_l). Any field can be overridden, e.g. "
    "--config.batch_size=16."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (or resume training), or evaluate a checkpoint.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "With --mode=eval: a workdir or one step, WORKDIR/checkpoints/STEP. Default: --workdir."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "With --mode=eval: which checkpoint of a run.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "params", ["params", "ema"], "With --mode=eval: the parameters, or their EMA (optimizer.ema_decay)."
)
_FROM_SCRATCH = flags.DEFINE_bool(
    "from_scratch", False, "Begin at step 0 where the --workdir shows a run whose checkpoints are gone."
)
_REPLAY = flags.DEFINE_string(
    "replay",
    None,
    "WORKDIR/failed_step: repeat a failed step from there, and say which clip and layer went wrong first.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "off"],
    "'auto': several processes find each other on TPU slices, under Slurm and Open MPI, otherwise by the flags below. "
    "'off': this process runs alone.",
)
_COORDINATOR_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def main(argv: list[str]) -> None:
    # Imported after the flags are parsed, so that --help and a mistyped flag answer at once.
    import jax

    from vivit_jax import checkpoint as checkpointing
    from vivit_jax import distributed, finetuning
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.utils import logs, storage

    logs.configure_logging()
    errors = (ValueError, OSError, MemoryError, FloatingPointError, checkpointing.CheckpointError)
    with command_line.exit_on(*errors):
        if _REPLAY.value is not None:
            from vivit_jax.train.replay import replay

            for line in replay(_REPLAY.value):
                print(line, flush=True)
            return
        experiment = Experiment.from_config(_CONFIG.value)  # raises before the processes connect
        distributed.initialise(_DISTRIBUTED.value, _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    watching = distributed.watching(experiment.step_timeout_seconds)
    with watching, distributed.synchronized_exit(), command_line.exit_on(*errors):
        distributed.beat("build" if experiment.data.video_dir else "start")
        experiment = finetuning.experiment_of(_CONFIG.value, _WORKDIR.value)  # may read weights, which uses devices
        if _MODE.value == "train":
            from vivit_jax.train import train

            try:
                metrics = train(experiment, _WORKDIR.value, from_scratch=_FROM_SCRATCH.value)
            except distributed.Preempted as preempted:
                logging.warning("%s", preempted)
                raise
            logging.info("Done: %s", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            if (conclusions := storage.path(_WORKDIR.value) / finetuning.CONCLUSIONS).exists():
                logging.info("%s", conclusions.read_text())
        else:
            from vivit_jax.evaluation.evaluate import evaluate

            result = evaluate(experiment, _WORKDIR.value, _CHECKPOINT.value, which=_WHICH.value, weights=_WEIGHTS.value)
            if jax.process_index() == 0:
                print(result.summary())
            if problem := result.problem(experiment.data.max_unreadable):
                raise OSError(problem)


def run() -> None:
    """Runs the program."""
    for name in ("config", "workdir"):
        message = f"Flag --{name} must have a value other than None."
        flags.register_multi_flags_validator([name, "replay"], lambda values: any(values.values()), message)
    command_line.run(main)


if __name__ == "__main__":
    run()
