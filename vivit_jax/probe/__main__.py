"""k-NN and a linear probe on the frozen features of a checkpoint.

python -m vivit_jax.probe --checkpoint=runs/digits --config=configs/moving_digits.py --workdir=runs/digits_probe
python -m vivit_jax.probe --checkpoint=vit_b16.safetensors --config=configs/k400_vivit_b.py --workdir=OUT --method=knn
"""

import functools
import re

from absl import flags

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, distributed, finetuning
from vivit_jax.config import flags as command_line
from vivit_jax.config.experiment import Experiment
from vivit_jax.probe import probe, table
from vivit_jax.probe.features import ProbeConfig
from vivit_jax.utils import logs


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of the program to `values`."""
    default = ProbeConfig()
    command_line.define_config(
        "Config of data set, clips and batch size; for pretrained weights, of the model too. Any field can be "
        "overridden, e.g. --config.data.dir=DIR.",
        values,
    )
    definitions = (getattr(flags, f"DEFINE_{kind}") for kind in ("string", "enum", "list", "float"))
    text, choice, numbers, real = (functools.partial(define, flag_values=values) for define in definitions)
    text("checkpoint", None, "A run, one step of it, or pretrained weights in any known format.")
    text("workdir", None, "Receives probe.json, and the features for the next time.")
    choice("which", "best", ["best", "latest"], "Step of a run.")
    choice("method", "both", ["linear", "knn", "both"], "What is fitted to the features.")
    text("views", "1", "CLIPS or CLIPSxCROPS of each video, as 4x3; their features are averaged.")
    numbers("k", list(map(str, default.neighbours)), "Comma-separated numbers of neighbours of k-NN.")
    real("temperature", default.temperature, "k-NN votes weigh exp(similarity / temperature).")
    penalties = "Comma-separated inverse strengths of the linear probe's penalty; held-out training videos choose one."
    numbers("c", list(map(str, default.inverse_penalties)), penalties)


def settings_of(values: flags.FlagValues) -> ProbeConfig:
    """Returns the settings of the flags; raises ValueError for a value that is not a number or is out of range."""
    views = re.fullmatch(r"(\d+)(?:x(\d+))?", values.views)
    if not views:
        raise ValueError(f"--views={values.views} must be CLIPS or CLIPSxCROPS, as 1 or 4x3")
    try:
        neighbours, penalties = tuple(map(int, values.k)), tuple(map(float, values.c))
    except ValueError as error:
        raise ValueError(f"--k={','.join(values.k)} --c={','.join(values.c)}: {error}") from error
    methods = ("knn", "linear") if values.method == "both" else (values.method,)
    options = {"neighbours": neighbours, "inverse_penalties": penalties, "temperature": values.temperature}
    return ProbeConfig(methods, temporal_views=int(views[1]), spatial_views=int(views[2] or 1), **options)


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    logs.configure_logging()
    errors = (ValueError, OSError, checkpointing.CheckpointError, convert.ConversionError)
    with distributed.synchronized_exit(), command_line.exit_on(*errors):
        Experiment.from_config(values.config)  # raises before the processes connect
        distributed.initialise()
        if values.config.derive:  # clips that fit the weights
            values.config.init_from.path = values.checkpoint
        experiment = finetuning.experiment_of(values.config)
        result = probe(experiment, values.checkpoint, values.workdir, settings_of(values), which=values.which)
        if result is not None:
            print(table(result))


if __name__ == "__main__":
    define_flags()
    command_line.run(main, required=("config", "checkpoint", "workdir"))
