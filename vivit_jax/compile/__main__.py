"""Compiles the training and the evaluation step of a config for a TPU slice and prints memory, traffic and operations.

python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32
python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v5e-256 --config.mesh.tensor=4 --search
python -m vivit_jax.compile --config=configs/k400_vivit_l.py:320 --topology=v3:4x8 --mesh=data=16,fsdp=4 --step=train

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
flags.DEFINE_alias("topology", "slice")
_MESH = flags.DEFINE_list("mesh", [], "Comma-separated AXIS=DEVICES, instead of --config.mesh.AXIS: data=-1,fsdp=8.")
_STEP = flags.DEFINE_enum("step", "both", ["train", "eval", "both"], "Which program to compile.")
_SEARCH = flags.DEFINE_bool("search", False, "Also find the largest training batch that fits.")


def parse_mesh(pairs: list[str]) -> dict[str, int]:
    """Parses the AXIS=DEVICES pairs of --mesh."""
    try:
        return {axis: int(devices) for axis, _, devices in (pair.partition("=") for pair in pairs)}
    except ValueError as error:
        raise ValueError(f"--mesh={','.join(pairs)} must be AXIS=DEVICES, as in --mesh=data=-1,fsdp=8") from error


def main(argv: list[str]) -> None:
    slices.without_a_tpu()
    from vivit_jax.compile import report
    from vivit_jax.compile.program import Target
    from vivit_jax.config.experiment import Experiment

    try:
        config = _CONFIG.value
        with config.unlocked():  # from_config rejects unknown axes, and names the known ones
            config.mesh.update(parse_mesh(_MESH.value))
        experiment = Experiment.from_config(config)
        slice_ = slices.parse(_SLICE.value)
        target = Target.on(experiment, experiment.dataset_heads(), slices.devices(slice_))
        steps = ("train", "eval") if _STEP.value == "both" else (_STEP.value,)
        fits = [report.print_report(target, slice_, step) for step in steps]
        if _SEARCH.value:
            report.print_largest_batch(target)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(fits) else 1)


if __name__ == "__main__":
    command_line.run(main, required=("config", "slice"), verbosity=logging.WARNING)
