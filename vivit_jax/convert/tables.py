"""The names that others give to the leaves of our parameter tree, as data.

A format is a table of rows (their name, our name, transform). `{layer}` stands for the number of a layer,
which they have in the name and we as the leading axis; `{leaf}` and the like stand for one part of a name.
The engine (`vivit_jax.convert.engine`) applies a table in both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vivit_jax.models import ViViTConfig

Leaves = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How an array of theirs becomes one or several of ours, and back. Arrays are of one layer.

    Attributes:
      load: their array -> ours, one for each of the row's names.
      save: ours, in the same order -> their array.
    """

    load: Callable[[np.ndarray], Leaves]
    save: Callable[[Leaves], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      theirs: a name of theirs, parts separated as they separate them, with placeholders in braces.
      ours: our name with the same placeholders, or several for an array of theirs that holds several of ours.
      transform: between the arrays.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Format:
    """What there is to know about one way of storing weights.

    Attributes:
      rows: config -> its table.
      signature: a regular expression that finds a name which only this format has.
      prefixes: what may stand in front of every name, longest first.
    """

    rows: Callable[[ViViTConfig], Sequence[Row]]
    signature: str
    prefixes: tuple[str, ...] = ("",)


def row(theirs: str, ours: str | tuple[str, ...], transform: Transform | None = None) -> Row:
    """A `Row`; one name of ours may come without its tuple, and no transform means the same array."""
    return Row(theirs, (ours,) if isinstance(ours, str) else ours, transform or SAME)


SAME = Transform(load=lambda x: [x], save=lambda xs: xs[0])
# (1, 1, d) or (1, N, d) there, (d,) or (N, d) here.
VECTOR = Transform(load=lambda x: [_unbatch(x, (1, 1))], save=lambda xs: xs[0][None, None])
SEQUENCE = Transform(load=lambda x: [_unbatch(x, (1,))], save=lambda xs: xs[0][None])


def _unbatch(x: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Takes leading axes of length one away; an array that has others stays, to be refused by its shape."""
    return x.reshape(x.shape[len(lead) :]) if x.shape[: len(lead)] == lead else x


def concatenated(sizes: Sequence[int]) -> Transform:
    """Several arrays of ours side by side along the last axis of one of theirs: heads, or fused projections.

    Args:
      sizes: what each of ours has of the last axis.
    """
    places = np.cumsum(sizes)[:-1]
    return Transform(
        load=lambda x: np.split(x, places, axis=-1) if x.shape[-1] == sum(sizes) else [x] * len(sizes),
        save=lambda xs: np.concatenate(xs, axis=-1),
    )


def scenic(config: ViViTConfig) -> list[Row]:
    """The authors' own names (scenic, `projects/vivit/model.py`), five models and both tokenisers.

    With several heads theirs is one projection, whose columns are our heads in the order of the config.
    """
    rows = [row("embedding/{leaf}", "tokenizer/{leaf}")]
    if config.attention == "factorised_encoder":
        rows += _scenic_encoder(config, "SpatialTransformer", "spatial_encoder", "cls_SpatialTransformer")
        if config.temporal_layers:
            rows += _scenic_encoder(config, "TemporalTransformer", "temporal_encoder", "cls_TemporalTransformer")
    else:
        rows += _scenic_encoder(config, "Transformer", "encoder", "cls")
    if config.representation_size:
        rows += [row("pre_logits/{leaf}", "pre_logits/{leaf}")]
    if isinstance(config.num_classes, tuple):
        heads = tuple(f"head_{name}/{{leaf}}" for name, _ in config.num_classes)
        rows += [row("output_projection/{leaf}", heads, concatenated([n for _, n in config.num_classes]))]
    elif config.num_classes is not None:
        rows += [row("output_projection/{leaf}", "head/{leaf}")]
    return rows


def _scenic_encoder(config: ViViTConfig, theirs: str, ours: str, class_token: str) -> list[Row]:
    block, layers = f"{theirs}/encoderblock_{{layer}}", f"{ours}/layers"
    if config.attention == "factorised_self_attention":
        names = {
            "LayerNorm_time": "norm_time",
            "MultiHeadDotProductAttention_time": "attention_time",
            "LayerNorm_space": "norm_space",
            "MultiHeadDotProductAttention_space": "attention_space",
            "LayerNorm_mlp": "norm_mlp",
            "MlpBlock": "mlp",
        }
    else:
        names = {
            "LayerNorm_0": "norm_attention",
            "MultiHeadDotProductAttention_0": "attention",
            "LayerNorm_1": "norm_mlp",
            "MlpBlock_0": "mlp",
        }
    rows = [
        row(f"{theirs}/posembed_input/pos_embedding", f"{ours}/position_embedding", SEQUENCE),
        row(f"{theirs}/encoder_norm/{{leaf}}", f"{ours}/norm/{{leaf}}"),
    ]
    if config.classifier == "token":
        rows.append(row(class_token, f"{ours}/class_token", VECTOR))
    for their_name, our_name in names.items():
        if "mlp" in our_name and "norm" not in our_name:
            rows.append(row(f"{block}/{their_name}/Dense_0/{{leaf}}", f"{layers}/{our_name}/dense_in/{{leaf}}"))
            rows.append(row(f"{block}/{their_name}/Dense_1/{{leaf}}", f"{layers}/{our_name}/dense_out/{{leaf}}"))
        elif "attention" in our_name and "norm" not in our_name:
            rows.append(row(f"{block}/{their_name}/{{part}}/{{leaf}}", f"{layers}/{our_name}/{{part}}/{{leaf}}"))
        else:
            rows.append(row(f"{block}/{their_name}/{{leaf}}", f"{layers}/{our_name}/{{leaf}}"))
    return rows


# format -> what there is to know about it; the order is that of looking.
FORMATS: dict[str, Format] = {
    "scenic": Format(
        rows=scenic,
        signature=r"(^|/)(Spatial|Temporal)?Transformer/encoderblock_\d+/",
        prefixes=("optimizer/target/", "params/", ""),
    ),
}
