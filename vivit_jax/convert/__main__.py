"""Weights from one format to another, or what is in a file.

python -m vivit_jax.convert --from=checkpoint_0                                          # which model, which leaves
python -m vivit_jax.convert --from=checkpoint_0 --to=hf_folder --format=huggingface
python -m vivit_jax.convert --from=hf_folder --to=runs/k400 --format=orbax              # to evaluate, predict, train
python -m vivit_jax.convert --from=ViT-B_16.npz --to=runs/start --format=orbax --config=configs/k400_vivit_b_fe.py

Without --config the model stays what it is. With it the weights are fitted to the config's model as its `init_from`
says (section 3.4), the same as training with `--config.init_from.path` does.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
from absl import app, flags, logging
from ml_collections import config_flags

from vivit_jax.config.init_from import InitFrom
from vivit_jax.convert import FORMATS, in_words, initialise, save_params
from vivit_jax.convert.source import Understood, understand
from vivit_jax.convert.tables import Hints
from vivit_jax.models import ViViTConfig, count_parameters

_FROM = flags.DEFINE_string("from", None, "A file or folder of weights; its format is found by looking.")
_TO = flags.DEFINE_string("to", None, "Where to write; nothing is overwritten. Without it, what is in --from is shown.")
_FORMAT = flags.DEFINE_enum("format", None, [f for f in FORMATS if f != "videoprism"], "What to write.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Fit the weights to this config's model.", lock_config=True)
_SOURCE_FORMAT = flags.DEFINE_enum("source_format", None, list(FORMATS), "What --from is, if looking does not tell.")
_PREFIX = flags.DEFINE_string("prefix", None, "Look only at names in --from that begin so.")
_GRID = flags.DEFINE_list("grid", None, "n_t,n_h,n_w of the model in --from, where its positions do not tell.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Attention heads of the model in --from, where it does not say.")


def convert() -> str:
    """What the command does; returns what it prints.

    Raises:
      As `vivit_jax.convert.initialise` and `save_params`.
    """
    if (_TO.value is None) != (_FORMAT.value is None):
        raise ValueError("--to and --format go together: where to write, and what")
    grid = tuple(int(n) for n in _GRID.value) if _GRID.value else None
    names: Mapping[str, Any] | None
    record: Mapping[str, Any] | None
    if _CONFIG.value is None:
        with understand(_FROM.value, _SOURCE_FORMAT.value, _PREFIX.value) as opened:
            config = opened.model(Hints(grid, _NUM_HEADS.value))
            names, record = class_names(opened, config), (opened.weights.facts.get("meta") or {}).get("config")
            if _TO.value is None:
                return show(opened, config)
            loaded = opened.load(config)
            params = flax.traverse_util.unflatten_dict(loaded.params, sep="/")
            dropped = "".join(f"\n  dropped {name}: {why}" for name, why in loaded.dropped.items())
            said = f"{opened.weights.where} ({opened.format}): {in_words(config)}, {len(loaded.params)} leaves{dropped}"
    else:
        options, config, record = wanted(_CONFIG.value, grid)
        made = initialise(_FROM.value, config, options)
        config, params, said = made.config, made.params, str(made.report)
        with understand(_FROM.value, options.format, options.prefix) as opened:
            names = class_names(opened, config) if options.head == "keep" else None
    if _TO.value is not None:
        save_params(params, _TO.value, _FORMAT.value, config, names, record)
        said += f"\nwritten: {_TO.value} ({_FORMAT.value})"
        if _FORMAT.value == "huggingface":
            said += "\nIts processor scales pixels to [-1, 1]; the default of Hugging Face's class is [-3, 1]."
    return said


def wanted(config: Any, grid: tuple[int, ...] | None) -> tuple[InitFrom, ViViTConfig, dict[str, Any]]:
    """Choices, model and the whole of a config file; flags of the command fill what its `init_from` leaves open."""
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.data import build, catalog

    experiment = Experiment.from_config(config)
    given = {"format": _SOURCE_FORMAT.value, "prefix": _PREFIX.value, "grid": grid, "num_heads": _NUM_HEADS.value}
    given = {name: value for name, value in given.items() if value is not None}
    options = dataclasses.replace(experiment.init_from, **given)
    data = experiment.data
    config = experiment.model_config(catalog.of_records(data.name, build.records_folder(data.name, data.dir)).heads)
    return options, config, experiment.to_dict()


def class_names(opened: Understood, config: ViViTConfig) -> dict[str, list[str]] | None:
    """head -> names of classes, where the weights come with them."""
    facts = opened.weights.facts
    names = (facts.get("meta") or {}).get("class_names")
    labels = (facts.get("config") or {}).get("id2label")
    if not names and labels:
        names = {"label": [labels[key] for key in sorted(labels, key=int)]}
    fits = names and all(len(names.get(head or "label", ())) == classes for head, classes in config.heads)
    return {head: list(labels) for head, labels in names.items()} if fits else None


def show(opened: Understood, config: ViViTConfig) -> str:
    """What is in a file: format, model, every leaf."""
    lines = [
        f"{opened.weights.where}: {opened.format} weights in a container of kind {opened.weights.container}",
        f"{in_words(config)}; {count_parameters(config):,} parameters; activation {config.activation}, "
        f"LayerNorm epsilon {config.layer_norm_eps:g}, qkv bias {config.qkv_bias}, "
        f"pre-logits layer {config.representation_size or 'none'}, classifier {config.classifier}, grid {config.grid}",
    ]
    width = max(map(len, opened.leaves))
    lines += [f"  {name:{width}}  {tuple(leaf.shape)} {leaf.dtype}" for name, leaf in opened.leaves.items()]
    lines += [f"  beside them: {name} ({why})" for name, why in opened.left_out.items()]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from vivit_jax.checkpoint import CheckpointError

    logging.set_verbosity(logging.ERROR)  # Orbax reports every file
    try:
        print(convert())
    except BrokenPipeError:
        sys.exit(0)  # whoever read the output, as `head`, has seen enough
    except (ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("from")
    app.run(main)
