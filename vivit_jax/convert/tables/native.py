"""Our own names, in Orbax checkpoints and flat files of this program."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util

from vivit_jax.convert.tables.rows import Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import image_config, shape_of, space_grid
from vivit_jax.models import ViViTConfig, abstract_params


def native(config: ViViTConfig) -> list[Row]:
    """Returns one row for every parameter of the model."""
    return [row(name, name) for name in flax.traverse_util.flatten_dict(abstract_params(config), sep="/")]


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the model that a checkpoint stores; without that, an image ViT by the shapes, or `hints.target`."""
    if checkpoint := metadata.get("checkpoint"):
        from vivit_jax.config.experiment import Experiment  # here: it needs ml_collections

        return Experiment.from_config(checkpoint["config"]).model_config(checkpoint["heads"])
    if "encoder/layers/attention/query/kernel" in shapes and len(shapes.get("tokenizer/kernel", ())) == 4:
        tokens = shape_of(shapes, "encoder/position_embedding", 2)[0] - ("encoder/class_token" in shapes)
        target = hints.target  # may be a video model that embeds frames in 2-D too
        is_video = target is not None and target.tokenizer == "uniform_frames" and target.grid[0] > 1
        if not (is_video and math.prod(target.grid) == tokens):
            return image_model(shapes, hints)
    if hints.target is None:
        raise ValueError("parameters under our own names do not say which model they are of: give the config")
    return hints.target


def image_model(shapes: Shapes, hints: Hints) -> ViViTConfig:
    """Returns the config of the image ViT with these shapes; activation and epsilon are those of `hints.target`."""
    h, w, channels, d = shape_of(shapes, "tokenizer/kernel", 4)
    layers, _, heads, _ = shape_of(shapes, "encoder/layers/attention/query/kernel", 4)
    token = "encoder/class_token" in shapes
    grid = space_grid(shape_of(shapes, "encoder/position_embedding", 2)[0] - token, hints)
    hidden = ("activation", "layer_norm_eps", "dtype")
    fields = {name: getattr(hints.target, name) for name in hidden} if hints.target is not None else {}
    biases = ((re.fullmatch(r"head_(.+)/bias", name), shape) for name, shape in shapes.items())
    heads_by_name = {match[1]: shape[0] for match, shape in biases if match}
    return image_config(
        grid,
        (h, w),
        hidden_size=d,
        num_heads=heads,
        num_layers=layers,
        mlp_dim=shape_of(shapes, "encoder/layers/mlp/dense_in/kernel", 3)[-1],
        in_channels=channels,
        classifier="token" if token else "gap",
        num_classes=heads_by_name or (shapes["head/bias"][0] if "head/bias" in shapes else None),
        representation_size=shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        qkv_bias="encoder/layers/attention/query/bias" in shapes,
        **fields,
    )


FORMAT = Format(rows=native, describe=describe, signature=r"tokenizer/kernel$", dropped=dropped("native"))
