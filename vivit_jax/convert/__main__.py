"""Converts weights from one format to another, or prints what a file contains.

python -m vivit_jax.convert --from=checkpoint_0                                          # its model and leaves
python -m vivit_jax.convert --from=checkpoint_0 --to=hf_folder --format=huggingface
python -m vivit_jax.convert --from=hf_folder --to=runs/k400 --format=orbax              # to evaluate, predict, train
python -m vivit_jax.convert --from=ViT-B_16.npz --to=runs/start --format=orbax --config=configs/k400_vivit_b_fe.py

Without --config the model stays the same. With it the weights are fitted to the config's model by its `init_from`
(section 3.4), as training with `--config.init_from.path` does.
"""

import contextlib
import dataclasses
import json
from typing import Any

import flax.traverse_util
from absl import flags, logging

from vivit_jax.config import flags as command_line
from vivit_jax.config.preprocessing import KEY, usual_input
from vivit_jax.config.sections import InitFrom
from vivit_jax.convert import FORMATS, describe_model, initialise, processor, save_params
from vivit_jax.convert.source import OpenedWeights, open_weights
from vivit_jax.convert.tables import Hints
from vivit_jax.models import ViViTConfig, count_parameters
from vivit_jax.utils.class_names import listed

_FROM = flags.DEFINE_string("from", None, "A file or folder of weights; its format is auto-detected.")
_TO = flags.DEFINE_string("to", None, "Path to write, which must not exist. Without it, --from is described.")
_FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "Format of --to.")
_CONFIG = command_line.define_config("Fit the weights to this config's model.")
_SOURCE_FORMAT = flags.DEFINE_enum("source_format", None, list(FORMATS), "Format of --from; default: auto-detected.")
_PREFIX = flags.DEFINE_string("prefix", None, "Read only names in --from with this prefix.")
_GRID = flags.DEFINE_list("grid", None, "n_t,n_h,n_w of the model in --from, where its positions allow several grids.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Attention heads of the model in --from, where it does not say.")
_MEAN = flags.DEFINE_list("pixel_mean", None, "As init_from.pixel_mean: the weights expect (x - mean) / std of [0, 1].")
_STD = flags.DEFINE_list("pixel_std", None, "As init_from.pixel_std.")


def convert() -> str:
    """Runs the command; returns what it prints."""
    if (_TO.value is None) != (_FORMAT.value is None):
        raise ValueError("--to and --format go together: the path to write, and its format")
    given = {"format": _SOURCE_FORMAT.value, "prefix": _PREFIX.value, "num_heads": _NUM_HEADS.value}
    given |= {"grid": _numbers(_GRID, int), "pixel_mean": _numbers(_MEAN, float), "pixel_std": _numbers(_STD, float)}
    given = {name: value for name, value in given.items() if value is not None}
    if _CONFIG.value is None:
        options = InitFrom(**given)
        with open_weights(_FROM.value, _SOURCE_FORMAT.value, _PREFIX.value) as weights:
            config = weights.model_config(Hints(options.grid, options.num_heads))
            if _TO.value is None:
                return describe(weights, config)
            metadata, class_names = weights.container.metadata, weights.class_names(config)
            stored, (pixels, ignored) = metadata.get("checkpoint") or {}, weights.pixels(config, options)
            record = stored.get("config") or {"input": usual_input(config, metadata.get("preprocessor"))}
            preprocessing = stored.get(KEY)
            loaded = weights.load(config, pixels=pixels)
        params = flax.traverse_util.unflatten_dict(loaded.params, sep="/")
        dropped = "".join(f"\n  dropped {name}: {why}" for name, why in loaded.dropped.items())
        where = f"{weights.container.where} ({weights.format})"
        message = f"{where}: {describe_model(config)}, {len(loaded.params)} leaves{dropped}"
        if ignored is not None:
            message += f"\nwarning: {ignored.warning('--')}"
    else:
        options, config, record, class_names = load_config(_CONFIG.value, given)
        preprocessing = None
        result = initialise(_FROM.value, config, options, seed=record["seed"], class_names=class_names)
        config, params, message = result.config, result.params, str(result.report)
        if not class_names and options.head == "keep":
            with open_weights(_FROM.value, options.format, options.prefix) as weights:
                class_names = weights.class_names(config)
    if _TO.value is not None:
        save_params(params, _TO.value, _FORMAT.value, config, class_names, record, preprocessing)
        message += f"\nwritten: {_TO.value} ({_FORMAT.value})"
        if _FORMAT.value == "huggingface":
            message += "\nIts processor scales pixels to [-1, 1]; the default of Hugging Face's class is [-3, 1]."
    return message


def _numbers(flag: Any, kind: type) -> tuple[Any, ...] | None:
    return None if flag.value is None else tuple(kind(value.strip(" ()")) for value in flag.value)


def load_config(config: Any, given: dict[str, Any]) -> tuple[InitFrom, ViViTConfig, dict, dict | None]:
    """Returns (options with `given`, model, the whole config as JSON, {head: class names} where its records exist)."""
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.data.paths import CLASS_NAMES_FILE, records_folder

    experiment = Experiment.from_config(config)
    options = dataclasses.replace(experiment.init_from, **given)
    heads, data = experiment.dataset_heads(), experiment.data
    file = records_folder(data.name, data.dir) / CLASS_NAMES_FILE
    names = json.loads(file.read_text()) if file.is_file() else {}
    names = names if heads == {head: len(of_head) for head, of_head in names.items()} else None  # not of a mixture
    return options, experiment.model_config(heads), experiment.to_dict(), names


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
    if pixels := processor.read(weights.container.metadata, config.in_channels):
        lines.insert(2, f"the image processor beside the weights scales pixels to {pixels}; our models take [-1, 1]")
    if names := weights.class_names(config):
        lines.insert(2, "; ".join(f"classes of {head!r}: {listed(of_head)}" for head, of_head in names.items()))
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
