"""Compiles the training and the evaluation step of a config for a TPU slice and prints memory, traffic and operations.

python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32
python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v5e-256 --config.mesh.tensor=4 --search
python -m vivit_jax.compile --config=configs/k400_vivit_l.py:320 --slice=v3:4x8 --config.mesh.fsdp=4 --step=train

Exit code 1: a step does not fit. No TPU is needed, only its compiler: pip install 'vivit_jax[tpu]'.
"""

import sys

from absl import flags, logging

from vivit_jax.compile import slices
from vivit_jax.config import flags as command_line

_CONFIG = command_line.define_config("Config: a file or a packaged config's name; any field can be overridden.")
_SLICE = flags.DEFINE_string(
    "slice", None, "TPU slice, by name (v3-32, v5e-16, ...) or by its chips (v3:4x4); several slices: 2xv5e-16."
)
_STEP = flags.DEFINE_enum("step", "both", ["train", "eval", "both"], "Which program to compile.")
_SEARCH = flags.DEFINE_bool("search", False, "Also find the largest training batch that fits.")


def main(argv: list[str]) -> None:
    slices.without_a_tpu()
    from vivit_jax.compile import report
    from vivit_jax.compile.program import Target
    from vivit_jax.config.experiment import Experiment

    try:
        experiment = Experiment.from_config(_CONFIG.value)
        if experiment.derive:
            from vivit_jax import finetuning  # needs the extra `train`

            experiment = finetuning.experiment_of(_CONFIG.value)
        slice_ = slices.parse(_SLICE.value)
        target = Target.on(experiment, experiment.dataset_heads(), slices.devices(slice_))
        steps = ("train", "eval") if _STEP.value == "both" else (_STEP.value,)
        for step in steps:
            target.clips_per_shard(step)  # raises before anything is compiled
        fits = [report.print_report(target, slice_, step) for step in steps]
        if _SEARCH.value:
            report.print_largest_batch(target)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(fits) else 1)


if __name__ == "__main__":
    command_line.run(main, required=("config", "slice"), verbosity=logging.WARNING)
