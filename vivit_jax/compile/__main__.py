"""Compiles the training and the evaluation step of a config for a TPU slice, and says what they need.

python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32
python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v5e-256 --config.mesh.tensor=4 --search
python -m vivit_jax.compile --config=configs/k400_vivit_l.py:320 --topology=v3:4x8 --mesh=data=16,fsdp=4 --step=train

Exit code 1: it does not fit. No TPU is needed, but its compiler is: pip install 'vivit_jax[tpu]'.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vivit_jax.compile import slices
from vivit_jax.config import flags as command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; any field can be overridden.", lock_config=True)
_SLICE = flags.DEFINE_string(
    "slice", None, "Where it is to run: v3-32, v5e-16, ..., or by its chips, v3:4x4; several alike: 2xv5e-16."
)
flags.DEFINE_alias("topology", "slice")
_MESH = flags.DEFINE_list("mesh", [], "AXIS=DEVICES, with commas, in place of --config.mesh.AXIS: data=-1,fsdp=8.")
_HEADS = flags.DEFINE_list("heads", [], "HEAD=CLASSES, with commas, for a data set that is not in the catalog.")
_STEP = flags.DEFINE_enum("step", "both", ["train", "eval", "both"], "Which program.")
_SEARCH = flags.DEFINE_bool("search", False, "Also find the largest training batch that fits.")


def numbers(flag: str, given: list[str], form: str) -> dict[str, int]:
    """{name: number} of a flag's NAME=NUMBER pairs.

    Raises:
      ValueError: a pair is none; the message names the form that is asked for.
    """
    try:
        return {name: int(number) for name, _, number in (pair.partition("=") for pair in given)}
    except ValueError as error:
        raise ValueError(f"--{flag}={','.join(given)} must be {form}") from error


def heads_of(name: str, given: list[str]) -> dict[str, int]:
    """{head: classes} as given on the command line, or of the catalog's data set.

    Raises:
      ValueError: neither; the message says what to give.
    """
    from vivit_jax.data import catalog

    if given:
        return numbers("heads", given, "HEAD=CLASSES, as in --heads=label=12")
    heads = dict(catalog.get(name).heads)
    if not all(heads.values()):
        raise ValueError(f"the classes of {name} are not known beforehand; give them, as in --heads=label=12")
    return heads


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    slices.without_a_tpu()
    from vivit_jax.compile import report
    from vivit_jax.compile.program import Target
    from vivit_jax.config.experiment import Experiment

    try:
        config = _CONFIG.value
        with config.unlocked():  # an axis that does not exist is refused with those that do, below
            config.mesh.update(numbers("mesh", _MESH.value, "AXIS=DEVICES, as in --mesh=data=-1,fsdp=8"))
        experiment = Experiment.from_config(config)
        slice_ = slices.parse(_SLICE.value)
        target = Target.on(experiment, heads_of(experiment.data.name, _HEADS.value), slices.devices(slice_))
        steps = ("train", "eval") if _STEP.value == "both" else (_STEP.value,)
        told = [report.tell(target, slice_, step) for step in steps]
        if _SEARCH.value:
            report.tell_largest(target, slice_)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(told) else 1)


def run() -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    command_line.run(main, required=("config", "slice"))


if __name__ == "__main__":
    run()
