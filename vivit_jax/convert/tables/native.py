"""Our own names, as an Orbax checkpoint or a flat file of this program holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util

from vivit_jax.convert.tables.rows import Format, Hints, Row, Shapes, row
from vivit_jax.convert.tables.sizes import image_config, shape_of, space_grid
from vivit_jax.models import ViViTConfig, abstract_params


def native(config: ViViTConfig) -> list[Row]:
    """Every parameter of the model under its own name."""
    names = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
    return [row(name, name) for name in names]


def describe(shapes: Shapes, facts: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """The model that a checkpoint says it is; without its record, an image ViT by the shapes, or the wanted model.

    Raises:
      ValueError: no record, no image model, and no wanted model.
    """
    meta = facts.get("meta")
    if meta:
        fields = {
            k: tuple(v) if isinstance(v, list) else v for k, v in meta["config"]["model"].items() if v is not None
        }
        heads = meta["heads"]
        fields["num_classes"] = next(iter(heads.values())) if list(heads) == ["label"] else heads
        name = fields.pop("name", None)
        return ViViTConfig.from_name(name, **fields) if name else ViViTConfig.from_dict(fields)
    if "encoder/layers/attention/query/kernel" in shapes and len(shapes.get("tokenizer/kernel", ())) == 4:
        tokens = shape_of(shapes, "encoder/position_embedding", 2)[0] - ("encoder/class_token" in shapes)
        frames = hints.target is not None and hints.target.tokenizer == "uniform_frames" and hints.target.grid[0] > 1
        if not (frames and hints.target.grid[0] * hints.target.grid[1] * hints.target.grid[2] == tokens):
            return image_model(shapes, hints)
    if hints.target is None:
        raise ValueError("parameters under our own names without the record of their model: give the config")
    return hints.target


def class_names(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """{head: names by class id} that the record of a checkpoint of ours tells, 'label' for an only head; else {}."""
    return {head: list(names) for head, names in (facts.get("meta") or {}).get("class_names", {}).items()}


def image_model(shapes: Shapes, hints: Hints) -> ViViTConfig:
    """The image ViT that our parameters with such shapes belong to.

    Activation and epsilon leave no trace in the weights: those of `hints.target` are taken.

    Raises:
      ValueError: a leaf is missing, or the positions are not a square and `hints` do not help.
    """
    h, w, channels, d = shape_of(shapes, "tokenizer/kernel", 4)
    layers, _, heads, _ = shape_of(shapes, "encoder/layers/attention/query/kernel", 4)
    token = "encoder/class_token" in shapes
    grid = space_grid(shape_of(shapes, "encoder/position_embedding", 2)[0] - token, hints)
    numbers = ("activation", "layer_norm_eps", "dtype")
    fields = {name: getattr(hints.target, name) for name in numbers} if hints.target is not None else {}
    named = {name.removesuffix("/bias").removeprefix("head_"): shape[0] for name, shape in shapes.items()
             if name.startswith("head_") and name.endswith("/bias")}  # fmt: skip
    return image_config(
        grid,
        (h, w),
        hidden_size=d,
        num_heads=heads,
        num_layers=layers,
        mlp_dim=shape_of(shapes, "encoder/layers/mlp/dense_in/kernel", 3)[-1],
        in_channels=channels,
        classifier="token" if token else "gap",
        num_classes=named or (shapes["head/bias"][0] if "head/bias" in shapes else None),
        representation_size=shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        qkv_bias="encoder/layers/attention/query/bias" in shapes,
        **fields,
    )


FORMAT = Format(
    rows=native,
    describe=describe,
    signature=r"(^|/)tokenizer/kernel$",
    prefixes=("params/", ""),
)
