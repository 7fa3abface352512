"""Names of the authors' code (scenic, `projects/vivit/model.py`): five models, both tokenisers, and their image ViT."""

import math
from collections.abc import Mapping
from typing import Any

from vivit_jax.convert.tables import transforms
from vivit_jax.convert.tables.rows import NAMES, Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import clip_grid, count_layers, shape_of, space_grid
from vivit_jax.models import ViViTConfig

# Module of a block (Flax numbers them) -> our name; big_vision has the same.
BLOCK: Mapping[str, str] = NAMES["blocks"]["scenic"]
BLOCK_MODEL_3: Mapping[str, str] = NAMES["blocks"]["scenic_model_3"]


def scenic(config: ViViTConfig) -> list[Row]:
    """Returns the rows of a model; several heads are columns of one projection, in the order of the config."""
    rows = [row("embedding/{leaf}", "tokenizer/{leaf}")]
    if config.attention == "factorised_encoder":
        rows += _encoder(config, "SpatialTransformer", "spatial_encoder", "cls_SpatialTransformer")
        if config.temporal_layers:
            rows += _encoder(config, "TemporalTransformer", "temporal_encoder", "cls_TemporalTransformer")
    else:
        rows += _encoder(config, "Transformer", "encoder", "cls")
    if config.representation_size:
        rows += [row("pre_logits/{leaf}", "pre_logits/{leaf}")]
    if isinstance(config.num_classes, tuple):
        heads = tuple(f"head_{name}/{{leaf}}" for name, _ in config.num_classes)
        rows += [row("output_projection/{leaf}", heads, transforms.concatenated([n for _, n in config.num_classes]))]
    elif config.num_classes is not None:
        rows += [row("output_projection/{leaf}", "head/{leaf}")]
    return rows


def _encoder(config: ViViTConfig, name: str, ours: str, class_token: str) -> list[Row]:
    parts = BLOCK_MODEL_3 if config.attention == "factorised_self_attention" else BLOCK
    rows = [
        row(f"{name}/posembed_input/pos_embedding", f"{ours}/position_embedding", transforms.SEQUENCE),
        row(f"{name}/encoder_norm/{{leaf}}", f"{ours}/norm/{{leaf}}"),
    ]
    if config.classifier == "token":
        rows.append(row(class_token, f"{ours}/class_token", transforms.VECTOR))
    return rows + block_rows(f"{name}/encoderblock_{{layer}}", f"{ours}/layers", parts)


def block_rows(block: str, layers: str, parts: Mapping[str, str]) -> list[Row]:
    """Returns the rows of an encoder block; `parts`: name of a Flax module -> our name."""
    rows = []
    for name, ours in parts.items():
        leaves = {"{leaf}": "{leaf}"}
        if ours == "mlp":
            leaves = {"Dense_0/{leaf}": "dense_in/{leaf}", "Dense_1/{leaf}": "dense_out/{leaf}"}
        elif ours.startswith("attention"):
            leaves = {"{part}/{leaf}": "{part}/{leaf}"}
        rows += [row(f"{block}/{name}/{there}", f"{layers}/{ours}/{here}") for there, here in leaves.items()]
    return rows


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the model with these shapes; eps 1e-6 and the tanh GELU, as in the authors' code.

    `hints.target` decides what the shapes leave open: the grid of the positions, and whether a joint encoder without
    class token is Model 1 with average pooling or Model 4 (without a hint Model 4: the published Model 1 has a token).
    """
    target = hints.target
    *time, h, w, channels, d = shape_of(shapes, "embedding/kernel", 4, 5)
    factorised = any(name.startswith("SpatialTransformer/") for name in shapes)
    encoder = "SpatialTransformer" if factorised else "Transformer"
    block = f"{encoder}/encoderblock_0"
    is_model_3 = f"{block}/LayerNorm_time/scale" in shapes
    suffix = "_space" if is_model_3 else "_0"
    _, heads, _ = shape_of(shapes, f"{block}/MultiHeadDotProductAttention{suffix}/query/kernel", 3)
    token = ("cls_SpatialTransformer" if factorised else "cls") in shapes
    _, slots, _ = shape_of(shapes, f"{encoder}/posembed_input/pos_embedding", 3)
    fields: dict[str, Any] = {
        "hidden_size": d,
        "num_heads": heads,
        "num_layers": count_layers(shapes, rf"{encoder}/encoderblock_(?P<layer>\d+)/"),
        "mlp_dim": shape_of(shapes, f"{block}/MlpBlock{'' if is_model_3 else '_0'}/Dense_0/kernel", 2)[1],
        "in_channels": channels,
        "classifier": "token" if token else "gap",
        "qkv_bias": f"{block}/MultiHeadDotProductAttention{suffix}/query/bias" in shapes,
        "representation_size": shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        "num_classes": _heads(shapes, target),
        "tokenizer": "tubelet" if time else "uniform_frames",
    }
    t = time[0] if time else 1
    if factorised:
        fields |= {"attention": "factorised_encoder", "temporal_layers": 0}
        n_h, n_w = space_grid(slots - token, hints)
        n_t = hints.grid[0] if hints.grid and len(hints.grid) == 3 else (target.grid[0] if target else 1)
        if "TemporalTransformer/posembed_input/pos_embedding" in shapes:
            n_t = shape_of(shapes, "TemporalTransformer/posembed_input/pos_embedding", 3)[1] - token
            fields["temporal_layers"] = count_layers(shapes, r"TemporalTransformer/encoderblock_(?P<layer>\d+)/")
    elif is_model_3:
        fields["attention"] = "factorised_self_attention"
        if target is not None:  # the weights do not show the order of the two axes
            fields["attention_order"] = target.attention_order
        n_t, n_h, n_w = clip_grid(slots, (t, h, w), hints)
    elif not time and _is_image(slots - token, hints):
        fields["attention"] = "spatiotemporal"
        n_t, (n_h, n_w) = 1, space_grid(slots - token, hints)
    else:
        is_model_1 = token or (target is not None and target.attention == "spatiotemporal")
        fields["attention"] = "spatiotemporal" if is_model_1 else "factorised_dot_product"
        n_t, n_h, n_w = clip_grid(slots - token, (t, h, w), hints)
    if not time and target is not None and target.tokenizer == "uniform_frames" and target.grid[0] == n_t:
        t = target.tubelet_size[0]  # the weights do not show the stride of sampled frames
    return ViViTConfig(tubelet_size=(t, h, w), num_frames=n_t * t, image_size=(n_h * h, n_w * w), **fields)


def _heads(shapes: Shapes, target: ViViTConfig | None) -> Any:
    """Returns the number of classes, or the heads of the target where they have as many classes together."""
    if "output_projection/bias" not in shapes:
        return None
    (columns,) = shape_of(shapes, "output_projection/bias", 1)
    heads = target.num_classes if target is not None and isinstance(target.num_classes, tuple) else ()
    return heads if sum(classes for _, classes in heads) == columns else columns


def _is_image(tokens: int, hints: Hints) -> bool:
    """Whether a joint encoder with a 2-D embedding is an image model, unless a hint or the target says otherwise."""
    if hints.grid is not None:
        return len(hints.grid) == 2 or hints.grid[0] == 1
    target = hints.target
    if target is not None and target.tokenizer == "uniform_frames" and math.prod(target.grid) == tokens:
        return target.grid[0] == 1
    return math.isqrt(tokens) ** 2 == tokens


SIGNATURE = r"(Spatial|Temporal)?Transformer/encoderblock_\d+/"
FORMAT = Format(rows=scenic, describe=describe, signature=SIGNATURE, dropped=dropped("training_state"))
