"""The paper's training recipes, the tables of recipes.toml, and configs made from them.

    config = published("kinetics400", "ViViT-B/16x2", "factorised_encoder")

returns the config of ViViT-B, Model 2, trained on Kinetics-400 as in the paper; a config file then sets what its row
changes. Config files import this module, not each other: they are loaded by path and have no package.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from vivit_jax.config.experiment import ConfigError, default_config

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
COMMON: Mapping[str, Any] = {**_TABLES["common"], "input.scale_jitter": tuple(_TABLES["common"]["input.scale_jitter"])}
RECIPES: Mapping[str, Mapping[str, Any]] = _TABLES["recipes"]
MODELS: Mapping[str, Mapping[str, Any]] = _TABLES["models"]  # Table 2's rows


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
    config.update_from_flattened_dict({**COMMON, **RECIPES[dataset], "data.name": dataset})
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
