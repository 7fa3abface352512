"""The paper's training recipes as a table, and configs made from them.

    config = published("kinetics400", "ViViT-B/16x2", "factorised_encoder")

returns the config of ViViT-B, Model 2, trained on Kinetics-400 as in the paper; a config file then sets what its row
changes. Config files import this module, not each other: they are loaded by path and have no package.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from vivit_jax.config.experiment import ConfigError, default_config

# Common to all recipes (section 4.1 and the appendix). No weight decay and no dropout are the defaults.
COMMON: Mapping[str, Any] = {
    "batch_size": 64,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 2.5,
    "optimizer.clip_norm": 1.0,
    "model.num_frames": 32,
    "model.image_size": 224,
    "input.short_side": 256,
    "input.random_crop": True,
    "input.scale_jitter": (0.9, 1.33),
    "input.flip_probability": 0.5,
    "evaluation.temporal_views": 4,
    "evaluation.spatial_views": 3,
    # Not from the paper. Any number of devices that divides 64 works, for training and for evaluation.
    "evaluation.batch_size": 64,
    "evaluation.every_epochs": 5.0,
    "model.dtype": "bfloat16",  # halves the memory of activations
}

_COLOUR = {
    "augment.colour_jitter_probability": 0.8,
    "augment.grayscale_probability": 0.1,  # from the published code, not in the appendix
}
_KINETICS = {"optimizer.learning_rate": 0.1, "num_epochs": 30.0, "input.stride": 2, **_COLOUR}

# Table of hyperparameters in the appendix.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "kinetics400": _KINETICS,
    "kinetics600": _KINETICS,
    "moments_in_time": {"optimizer.learning_rate": 0.25, "num_epochs": 10.0, "input.stride": 2, **_COLOUR},
    "epic_kitchens100": {
        "optimizer.learning_rate": 0.5,
        "num_epochs": 50.0,
        "input.stride": 1,
        "augment.rand_augment_layers": 2,
        "augment.rand_augment_magnitude": 15.0,
        "augment.mixup": 0.1,
        "model.stochastic_depth_rate": 0.2,
        "label_smoothing": 0.2,
        "evaluation.spatial_views": 1,
        "checkpoint.best_metric": "action/top1",
    },
    "something_something_v2": {
        "optimizer.learning_rate": 0.5,
        "num_epochs": 35.0,
        "input.stride": 1,
        "input.short_side": 288,
        "model.image_size": 256,
        "augment.rand_augment_layers": 2,
        "augment.rand_augment_magnitude": 20.0,
        "augment.mixup": 0.3,
        "model.stochastic_depth_rate": 0.3,
        "label_smoothing": 0.3,
    },
}

# Table 2's rows; `temporal_layers=0` is the average-pool baseline.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "model1": {"attention": "spatiotemporal"},
    "model2": {"attention": "factorised_encoder"},
    "model3": {"attention": "factorised_self_attention"},
    "model4": {"attention": "factorised_dot_product"},
    "average_pool": {"attention": "factorised_encoder", "temporal_layers": 0},
}


def check_row(row: str, rows: Mapping[str, str]) -> None:
    """Raises ConfigError, which lists all rows, unless `--config=FILE:ROW` has one of `rows`, {name: description}."""
    if row not in rows:
        width = max(map(len, rows))
        listed = "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())
        problem = f"there is no row {row!r}" if row else "a row is needed"
        raise ConfigError(f"{problem}; put one of these after the file's name and a colon, FILE.py:ROW\n{listed}")


def published(dataset: str, model: str, attention: str, **fields: Any) -> ml_collections.ConfigDict:
    """Returns the config of the paper's training and evaluation on a data set (section 4.1, the appendix).

    It is locked: setting an unknown field is an error. `init_from.path` is not set.

    Args:
      dataset: a key of `RECIPES`, else ConfigError.
      model: the name in the paper, 'ViViT-B/16x2'.
      attention: as in `ViViTConfig`.
      **fields: other fields of `config.model`.
    """
    if dataset not in RECIPES:
        raise ConfigError(f"the paper has no recipe for data set {dataset!r}, only for {', '.join(RECIPES)}")
    config = default_config().lock()
    config.update_from_flattened_dict({**COMMON, **RECIPES[dataset]})
    config.data.name = dataset
    for field, value in {"name": model, "attention": attention, **fields}.items():
        config.model[field] = value
    return config


def set_crop(config: ml_collections.ConfigDict, pixels: int) -> None:
    """Sets the crop, and the model's image size, to `pixels` x `pixels`; changes `config` in place.

    The frame's short side changes in proportion (256 for a crop of 224), so that a crop shows the same part of the
    frame; the paper gives only the crop's size. Stored frames, with a short side of at most 256 pixels, are enlarged.
    """
    config.model.image_size = pixels
    config.input.short_side = round(pixels * COMMON["input.short_side"] / COMMON["model.image_size"])
