"""Names of Hugging Face's VideoMAE, a Model 1 without class token: computed positions, keys without a bias."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit_jax.convert.tables import huggingface, transforms
from vivit_jax.convert.tables.huggingface import pair
from vivit_jax.convert.tables.rows import NAMES, Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import shape_of
from vivit_jax.models import ViViTConfig

# Its `config.json` has the fields of ViViT's; these are their defaults.
_CONFIG = {"image_size": 224, "num_frames": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12}


def videomae(config: ViViTConfig) -> list[Row]:
    """Returns the rows of a Model 1; arrays that the files lack are made where their neighbours are read."""
    heads = transforms.projection(config.num_heads)
    positions = sinusoids(math.prod(config.grid), config.hidden_size)
    with_positions = transforms.Transform(lambda x: [x, positions], _refuse)
    zeros = np.zeros((config.num_heads, config.head_dim))
    without_key = transforms.Transform(lambda x: [*heads.load(x), zeros], _refuse)
    rows: list[Row] = []
    for prefix in ("videomae.", ""):
        embeddings, layer = f"{prefix}embeddings.patch_embeddings.projection", f"{prefix}encoder.layer.{{layer}}"
        bias = ("tokenizer/bias", "encoder/position_embedding")
        rows += [row(f"{embeddings}.weight", "tokenizer/kernel", transforms.CONVOLUTION)]
        rows += [row(f"{embeddings}.bias", bias, with_positions)]
        attention, ours = f"{layer}.attention.attention", "encoder/layers/attention"
        for query, value in (("q_bias", "v_bias"), ("query.bias", "value.bias")):  # until version 5, and from it
            rows += [row(f"{attention}.{query}", (f"{ours}/query/bias", f"{ours}/key/bias"), without_key)]
            rows += [row(f"{attention}.{value}", f"{ours}/value/bias", heads)]
        for name, _, part, kind in NAMES["huggingface"]["parts"]:
            rows += pair(f"{layer}.{name}", f"encoder/layers/{part}", kind, config.num_heads)
        if not config.pool_norm:
            rows += pair(f"{prefix}layernorm", "encoder/norm", "norm")
    rows += pair("fc_norm", "encoder/norm", "norm") if config.pool_norm else []
    return rows + (pair("classifier", "head", "dense") if config.num_classes is not None else [])


def _refuse(_: transforms.Leaves) -> np.ndarray:
    raise ValueError("videomae weights are read, not written; choose orbax or scenic")


def sinusoids(count: int, d: int) -> np.ndarray:
    """Returns the positions of VideoMAE, float32 [count, d]: sines and cosines of position / 10000^(2 (i // 2) / d)."""
    angles = np.arange(count)[:, None] / np.power(10000, 2 * (np.arange(d) // 2) / d)
    return np.where(np.arange(d) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the model; without `config.json` that of 16 frames of 224 pixels, or `hints.grid`."""
    written = _CONFIG | (metadata.get("config") or {})
    names = {name.removeprefix("videomae."): shape for name, shape in shapes.items()}
    d, _, t, h, w = shape_of(names, "embeddings.patch_embeddings.projection.weight", 5)
    size = written["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    grid = hints.grid or (written["num_frames"] // t, height // h, width // w)
    names["embeddings.position_embeddings"] = (1, math.prod(grid) + 1, d)
    config = huggingface.describe(names, {"config": written}, dataclasses.replace(hints, grid=grid))
    pools, biases = "fc_norm.weight" in names, ("q_bias", "query.bias")
    return dataclasses.replace(
        config,
        classifier="gap",
        pool_norm=pools,
        num_classes=config.num_classes if pools else None,
        qkv_bias=any(f"encoder.layer.0.attention.attention.{name}" in names for name in biases),
    )


_SIGNATURE, _WITHOUT = r"embeddings\.patch_embeddings\.projection\.weight$", r"(cls_token|position_embeddings)$"
FORMAT = Format(videomae, describe, _SIGNATURE, without=_WITHOUT, roots=("videomae.",), dropped=dropped("videomae"))
