"""Names of timm's `VisionTransformer`: one fused projection for query, key and value, exact GELU, eps 1e-6."""

import re
from collections.abc import Mapping
from typing import Any

from vivit_jax.convert.tables import transforms
from vivit_jax.convert.tables.huggingface import pair
from vivit_jax.convert.tables.rows import NAMES, Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import check_image_model, count_layers, heads_of, image_config, shape_of, space_grid
from vivit_jax.convert.tables.transforms import derived
from vivit_jax.models import ViViTConfig


def timm(config: ViViTConfig) -> list[Row]:
    """Returns the rows of an image ViT; where the class token has no position, its slot is zero."""
    check_image_model(config, "timm")
    block, layers = "blocks.{layer}", "encoder/layers"
    fused = transforms.projection(config.num_heads, parts=3)
    qkv = [f"{layers}/attention/{part}" for part in ("query", "key", "value")]
    rows = [
        row("patch_embed.proj.weight", "tokenizer/kernel", transforms.image_kernel(config, transforms.CONVOLUTION)),
        row("patch_embed.proj.bias", "tokenizer/bias"),
        row("pos_embed", "encoder/position_embedding", transforms.slotted(config)),
        row(f"{block}.attn.qkv.weight", tuple(f"{part}/kernel" for part in qkv), fused),
        row(f"{block}.attn.qkv.bias", tuple(f"{part}/bias" for part in qkv), fused),
        *pair("norm", "encoder/norm", "norm"),
    ]
    for name, ours, kind in NAMES["timm"]["parts"]:
        rows += pair(f"{block}.{name}", f"{layers}/{ours}", kind, config.num_heads)
    if config.classifier == "token":
        rows.append(row("cls_token", "encoder/class_token", transforms.VECTOR))
    if config.representation_size:
        rows += pair("pre_logits.fc", "pre_logits", "dense")
    if config.num_classes is not None:
        rows += pair("head", "head", "dense")
    return rows


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the image model with these shapes."""
    d, channels, h, w = shape_of(shapes, "patch_embed.proj.weight", 4)
    token = "cls_token" in shapes
    pools = any(name.startswith(("fc_norm.", "attn_pool.")) for name in shapes)
    slots = shape_of(shapes, "pos_embed", 3)[1]
    try:
        grid = space_grid(slots - token, hints)
    except ValueError:
        grid = space_grid(slots, hints)  # `no_embed_class`: the class token has no position
    return image_config(
        grid,
        (h, w),
        hidden_size=d,
        num_heads=heads_of(d, hints),
        num_layers=count_layers(shapes, r"blocks\.(?P<layer>\d+)\."),
        mlp_dim=shape_of(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
        in_channels=channels,
        classifier="token" if token else "gap",
        # The head of a model that pools otherwise is of no use to ours.
        num_classes=shapes["head.bias"][0] if "head.bias" in shapes and not pools else None,
        representation_size=shapes["pre_logits.fc.bias"][0] if "pre_logits.fc.bias" in shapes else None,
        activation="gelu",
        layer_norm_eps=1e-6,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
    )


def fold(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Folds layer scale, a factor on each dimension of a branch's output, into the branch's last layer, exactly."""
    folded = dict(leaves)
    for name, scale in leaves.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            layer = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            if f"{layer}.weight" in leaves and f"{layer}.bias" in leaves:
                del folded[name]
                weight, bias = (f"{layer}.{part}" for part in ("weight", "bias"))
                folded[weight] = derived(leaves[weight], lambda x, scale=scale: x * scale.read()[:, None])
                folded[bias] = derived(leaves[bias], lambda x, scale=scale: x * scale.read())
    return folded


FORMAT = Format(timm, describe, r"blocks\.\d+\.attn\.qkv\.weight$", fold=fold, dropped=dropped("timm"))
