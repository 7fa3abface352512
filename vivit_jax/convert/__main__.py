"""Converts weights from one format to another, or prints what a file contains.

python -m vivit_jax.convert --from=checkpoint_0                                          # its model and leaves
python -m vivit_jax.convert --from=checkpoint_0 --to=hf_folder --format=huggingface
python -m vivit_jax.convert --from=hf_folder --to=runs/k400 --format=orbax              # to evaluate, predict, train
python -m vivit_jax.convert --from=ViT-B_16.npz --to=runs/start --format=orbax --config=configs/k400_vivit_b_fe.py

Without --config the model stays the same. With it the weights are fitted to the config's model by its `init_from`
(section 3.4), as training with `--config.init_from.path` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import flax.traverse_util
from absl import flags, logging

from vivit_jax.config import flags as command_line
from vivit_jax.config.init_from import InitFrom
from vivit_jax.config.preprocessing import KEY, usual_input
from vivit_jax.convert import FORMATS, describe_model, initialise, save_params
from vivit_jax.convert.source import OpenedWeights, open_weights
from vivit_jax.convert.tables import Hints
from vivit_jax.models import ViViTConfig, count_parameters

_FROM = flags.DEFINE_string("from", None, "A file or folder of weights; its format is auto-detected.")
_TO = flags.DEFINE_string("to", None, "Path to write, which must not exist. Without it, --from is described.")
_FORMAT = flags.DEFINE_enum("format", None, [f for f in FORMATS if f != "videoprism"], "Format of --to.")
_CONFIG = command_line.define_config("Fit the weights to this config's model.")
_SOURCE_FORMAT = flags.DEFINE_enum("source_format", None, list(FORMATS), "Format of --from; default: auto-detected.")
_PREFIX = flags.DEFINE_string("prefix", None, "Read only names in --from with this prefix.")
_GRID = flags.DEFINE_list("grid", None, "n_t,n_h,n_w of the model in --from, where its positions allow several grids.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Attention heads of the model in --from, where it does not say.")


def convert() -> str:
    """Runs the command; returns what it prints."""
    if (_TO.value is None) != (_FORMAT.value is None):
        raise ValueError("--to and --format go together: the path to write, and its format")
    grid = tuple(int(n) for n in _GRID.value) if _GRID.value else None
    if _CONFIG.value is None:
        with open_weights(_FROM.value, _SOURCE_FORMAT.value, _PREFIX.value) as weights:
            config = weights.model_config(Hints(grid, _NUM_HEADS.value))
            if _TO.value is None:
                return describe(weights, config)
            class_names = fitting_class_names(weights, config)
            stored = weights.container.metadata.get("checkpoint") or {}
            shortest = ((weights.container.metadata.get("preprocessor") or {}).get("size") or {}).get("shortest_edge")
            record = stored.get("config") or {"input": usual_input(config, shortest)}
            preprocessing = stored.get(KEY)
            loaded = weights.load(config)
        params = flax.traverse_util.unflatten_dict(loaded.params, sep="/")
        dropped = "".join(f"\n  dropped {name}: {why}" for name, why in loaded.dropped.items())
        where = f"{weights.container.where} ({weights.format})"
        message = f"{where}: {describe_model(config)}, {len(loaded.params)} leaves{dropped}"
    else:
        options, config, record = load_config(_CONFIG.value, grid)
        preprocessing = None
        result = initialise(_FROM.value, config, options)
        config, params, message = result.config, result.params, str(result.report)
        with open_weights(_FROM.value, options.format, options.prefix) as weights:
            class_names = fitting_class_names(weights, config) if options.head == "keep" else None
    if _TO.value is not None:
        save_params(params, _TO.value, _FORMAT.value, config, class_names, record, preprocessing)
        message += f"\nwritten: {_TO.value} ({_FORMAT.value})"
        if _FORMAT.value == "huggingface":
            message += "\nIts processor scales pixels to [-1, 1]; the default of Hugging Face's class is [-3, 1]."
    return message


def load_config(config: Any, grid: tuple[int, ...] | None) -> tuple[InitFrom, ViViTConfig, dict[str, Any]]:
    """Returns (options, model, the whole config as JSON); flags of the command override its `init_from`."""
    from vivit_jax.config.experiment import Experiment

    experiment = Experiment.from_config(config)
    given = {"format": _SOURCE_FORMAT.value, "prefix": _PREFIX.value, "grid": grid, "num_heads": _NUM_HEADS.value}
    given = {name: value for name, value in given.items() if value is not None}
    options = dataclasses.replace(experiment.init_from, **given)
    return options, experiment.model_config(experiment.dataset_heads()), experiment.to_dict()


def fitting_class_names(weights: OpenedWeights, config: ViViTConfig) -> dict[str, list[str]] | None:
    """Returns the class names of the weights where they fit the heads of a model."""
    names = weights.class_names()
    fits = names and all(len(names.get(head or "label", ())) == classes for head, classes in config.heads)
    return names if fits else None


def describe(weights: OpenedWeights, config: ViViTConfig) -> str:
    """Returns format, model and every leaf of a file."""
    lines = [
        f"{weights.container.where}: {weights.format} weights in a container of kind {weights.container.kind}",
        f"{describe_model(config)}; {count_parameters(config):,} parameters; activation {config.activation}, "
        f"LayerNorm epsilon {config.layer_norm_eps:g}, qkv bias {config.qkv_bias}, "
        f"pre-logits layer {config.representation_size or 'none'}, classifier {config.classifier}, grid {config.grid}",
    ]
    width = max(map(len, weights.leaves))
    lines += [f"  {name:{width}}  {tuple(leaf.shape)} {leaf.dtype}" for name, leaf in weights.leaves.items()]
    lines += [f"  left out: {name} ({why})" for name, why in weights.excluded.items()]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    from vivit_jax.checkpoint import CheckpointError

    with command_line.exit_on(ValueError, OSError, CheckpointError), contextlib.suppress(BrokenPipeError):
        print(convert())  # the reader of the output, such as `head`, may close it


def run() -> None:
    """Runs the program."""
    command_line.run(main, required=("from",), verbosity=logging.ERROR)  # below that, Orbax logs every file


if __name__ == "__main__":
    run()
