"""The authors' own names (scenic, `projects/vivit/model.py`), five models and both tokenisers, and their image ViT."""

from __future__ import annotations

from vivit_jax.convert.tables.rows import SEQUENCE, VECTOR, Row, concatenated, row
from vivit_jax.models import ViViTConfig


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
