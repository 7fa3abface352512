"""k-NN and a linear probe on the frozen features of a checkpoint.

python -m vivit_jax.probe --checkpoint=runs/digits --config=configs/moving_digits.py --workdir=runs/digits_probe
python -m vivit_jax.probe --checkpoint=vit_b16.safetensors --config=configs/k400_vivit_b.py --workdir=OUT --method=knn
"""

from __future__ import annotations

from absl import flags

from vivit_jax.config import flags as command_line
from vivit_jax.probe.config import FEATURES, UNSEEN, ProbeConfig, parse_views

_DEFAULT = ProbeConfig()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of the program to `values`."""
    command_line.define_config(
        "Config of data set, clips and batch size; for weights in other formats, of the model too. Any field can be "
        "overridden, e.g. --config.data.dir=DIR.",
        values,
    )
    flags.DEFINE_string(
        "checkpoint", None, "A run, one step of it, or weights of others in any known format.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "Gets probe.json, and the features for the next time.", flag_values=values)
    flags.DEFINE_enum("which", "best", ["best", "latest"], "Which step of a run.", flag_values=values)
    flags.DEFINE_enum("method", "both", ["linear", "knn", "both"], "What is tried on the features.", flag_values=values)
    flags.DEFINE_enum(
        "features", _DEFAULT.features, FEATURES, "The head's input, or the mean of the last tokens.", flag_values=values
    )
    flags.DEFINE_string(
        "views", "1", "CLIPS or CLIPSxCROPS of each video, as 4x3; their features are averaged.", flag_values=values
    )
    flags.DEFINE_list(
        "k", [str(k) for k in _DEFAULT.neighbours], "Neighbours of k-NN, with commas.", flag_values=values
    )
    flags.DEFINE_float(
        "temperature", _DEFAULT.temperature, "Of the votes of k-NN, exp(similarity / temperature).", flag_values=values
    )
    flags.DEFINE_list(
        "c",
        [f"{c:g}" for c in _DEFAULT.inverse_penalties],
        "Inverse strengths of the linear probe's penalty, with commas; chosen on a part of the training videos.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_iterations", _DEFAULT.max_iterations, "Of each fit of the linear probe.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_enum(
        "unseen_classes",
        _DEFAULT.unseen_classes,
        UNSEEN,
        "Evaluated classes without a training video: an error, or counted as wrong.",
        flag_values=values,
    )


def settings_of(values: flags.FlagValues) -> ProbeConfig:
    """The settings that the flags ask for.

    Raises:
      ValueError: a number that is none, or is out of range.
    """
    temporal, spatial = parse_views(values.views)
    try:
        neighbours, penalties = tuple(map(int, values.k)), tuple(map(float, values.c))
    except ValueError as error:
        raise ValueError(f"--k={','.join(values.k)} --c={','.join(values.c)}: {error}") from error
    return ProbeConfig(
        methods=("knn", "linear") if values.method == "both" else (values.method,),
        features=values.features,
        temporal_views=temporal,
        spatial_views=spatial,
        neighbours=neighbours,
        temperature=values.temperature,
        inverse_penalties=penalties,
        max_iterations=values.max_iterations,
        unseen_classes=values.unseen_classes,
    )


def main(argv: list[str]) -> None:
    from vivit_jax import checkpoint as checkpointing
    from vivit_jax import convert, distributed
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.probe import probe, table
    from vivit_jax.utils import logs

    values = flags.FLAGS
    logs.configure_logging()
    errors = (ValueError, OSError, checkpointing.CheckpointError, convert.ConversionError)
    with distributed.synchronized_exit(), command_line.exit_on(*errors):
        distributed.initialise()
        settings = settings_of(values)
        run = Experiment.from_config(values.config)
        result = probe(run, values.checkpoint, values.workdir, settings, which=values.which)
        if result is not None:
            print(table(result))


if __name__ == "__main__":
    define_flags()
    command_line.run(main, required=("config", "checkpoint", "workdir"))
