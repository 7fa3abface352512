"""Names of image ViTs in Flax: vision_transformer, AugReg (`MlpBlock_3`); big_vision (`MlpBlock_0`; some stacked)."""

from collections.abc import Mapping
from typing import Any

from vivit_jax.convert.tables import transforms
from vivit_jax.convert.tables.rows import NAMES, Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.scenic import BLOCK, block_rows
from vivit_jax.convert.tables.sizes import check_image_model, count_layers, image_config, shape_of, space_grid
from vivit_jax.models import ViViTConfig

_AUGREG: Mapping[str, str] = NAMES["blocks"]["augreg"]


def vit_npz(config: ViViTConfig) -> list[Row]:
    """Returns the rows of an image ViT; big_vision adds the positions before the class token, whose slot is zero."""
    check_image_model(config, "vit_npz (vision_transformer, AugReg, big_vision)")
    layers = "encoder/layers"
    rows = [
        row("embedding/kernel", "tokenizer/kernel", transforms.image_kernel(config)),
        row("embedding/bias", "tokenizer/bias"),
        row("Transformer/posembed_input/pos_embedding", "encoder/position_embedding", transforms.SEQUENCE),
        row("pos_embedding", "encoder/position_embedding", transforms.slotted(config)),
        row("Transformer/encoder_norm/{leaf}", "encoder/norm/{leaf}"),
        *block_rows("Transformer/encoderblock_{layer}", layers, _AUGREG),
        *block_rows("Transformer/encoderblock_{layer}", layers, BLOCK),
        *block_rows("Transformer/encoderblock", layers, BLOCK),
    ]
    if config.classifier == "token":
        rows.append(row("cls", "encoder/class_token", transforms.VECTOR))
    if config.representation_size:
        rows.append(row("pre_logits/{leaf}", "pre_logits/{leaf}"))
    if config.num_classes is not None:
        rows.append(row("head/{leaf}", "head/{leaf}"))
    return rows


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the image model with these shapes; eps 1e-6 and the tanh GELU, as in the public code."""
    h, w, channels, d = shape_of(shapes, "embedding/kernel", 4)
    stacked = any(name.startswith("Transformer/encoderblock/") for name in shapes)
    block = "Transformer/encoderblock" + ("" if stacked else "_0")
    names = _AUGREG if f"{block}/MlpBlock_3/Dense_0/kernel" in shapes else BLOCK
    attention, mlp = (next(name for name, ours in names.items() if ours == part) for part in ("attention", "mlp"))
    query = shape_of(shapes, f"{block}/{attention}/query/kernel", 3 + stacked)
    token = "cls" in shapes
    positions = "Transformer/posembed_input/pos_embedding"
    has_slot = token and positions in shapes
    tokens = shape_of(shapes, positions if positions in shapes else "pos_embedding", 3)[1] - has_slot
    return image_config(
        space_grid(tokens, hints),
        (h, w),
        hidden_size=d,
        num_heads=query[-2],
        num_layers=query[0] if stacked else count_layers(shapes, r"Transformer/encoderblock_(?P<layer>\d+)/"),
        mlp_dim=shape_of(shapes, f"{block}/{mlp}/Dense_0/kernel", 2 + stacked)[-1],
        in_channels=channels,
        classifier="token" if token else "gap",
        num_classes=shapes["head/bias"][0] if "head/bias" in shapes else None,
        representation_size=shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        qkv_bias=f"{block}/{attention}/query/bias" in shapes,
    )


# The positions of big_vision alone: other models have them in a module of their own.
_SIGNATURE = r"Transformer/encoderblock(_\d+/MlpBlock_3)?/|(?<!\.)(?<!posembed_input/)pos_embedding$"
FORMAT = Format(vit_npz, describe, _SIGNATURE, dropped=dropped("training_state", "vit_npz"))
