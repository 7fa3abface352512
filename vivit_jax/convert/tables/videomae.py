"""Names of Hugging Face's VideoMAE, a Model 1 without class token: computed positions, keys without a bias."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit_jax.convert.tables import transforms
from vivit_jax.convert.tables.huggingface import ACTIVATIONS, pair
from vivit_jax.convert.tables.rows import Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import count_layers, heads_of, shape_of
from vivit_jax.models import ViViTConfig


def videomae(config: ViViTConfig) -> list[Row]:
    """Returns the rows of a Model 1; arrays that the files lack are made where their neighbours are read."""
    d, block, layers = config.hidden_size, "encoder.layer.{layer}", "encoder/layers"
    heads = transforms.projection(config.num_heads)
    positions = sinusoids(int(np.prod(config.grid)), d)
    with_positions = transforms.Transform(lambda x: [x, positions], _refuse)
    zeros = np.zeros((config.num_heads, config.head_dim))
    without_key = transforms.Transform(lambda x: [*heads.load(x), zeros], _refuse)
    rows: list[Row] = []
    for prefix in ("videomae.", ""):
        embeddings, layer = f"{prefix}embeddings.patch_embeddings.projection", f"{prefix}{block}"
        bias = ("tokenizer/bias", "encoder/position_embedding")
        rows += [row(f"{embeddings}.weight", "tokenizer/kernel", transforms.CONVOLUTION)]
        rows += [row(f"{embeddings}.bias", bias, with_positions)]
        attention, ours = f"{layer}.attention.attention", f"{layers}/attention"
        for query, value in (("q_bias", "v_bias"), ("query.bias", "value.bias")):  # until version 5, and from it
            rows += [row(f"{attention}.{query}", (f"{ours}/query/bias", f"{ours}/key/bias"), without_key)]
            rows += [row(f"{attention}.{value}", f"{ours}/value/bias", heads)]
        for part in ("query", "key", "value"):
            rows += [row(f"{attention}.{part}.weight", f"{ours}/{part}/kernel", heads)]
        rows += pair(f"{layer}.attention.output.dense", f"{ours}/out", "output", config.num_heads)
        for name, part in (("before", "norm_attention"), ("after", "norm_mlp")):
            rows += pair(f"{layer}.layernorm_{name}", f"{layers}/{part}", "norm")
        rows += pair(f"{layer}.intermediate.dense", f"{layers}/mlp/dense_in", "dense")
        rows += pair(f"{layer}.output.dense", f"{layers}/mlp/dense_out", "dense")
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
    written = metadata.get("config") or {}
    names = {name.removeprefix("videomae."): shape for name, shape in shapes.items()}
    d, channels, t, h, w = shape_of(names, "embeddings.patch_embeddings.projection.weight", 5)
    size = written.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    n_t, n_h, n_w = hints.grid or (written.get("num_frames", 16) // t, height // h, width // w)
    if (activation := written.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise ValueError(f"config.json says hidden_act={activation!r}; ViViT here has {', '.join(ACTIVATIONS)}")
    pools, biases = "fc_norm.weight" in names, ("q_bias", "query.bias")
    return ViViTConfig(
        hidden_size=d,
        num_heads=hints.num_heads or written.get("num_attention_heads") or heads_of(d, hints),
        num_layers=count_layers(names, r"encoder\.layer\.(?P<layer>\d+)\."),
        mlp_dim=shape_of(names, "encoder.layer.0.intermediate.dense.weight", 2)[0],
        tubelet_size=(t, h, w),
        num_frames=n_t * t,
        image_size=(n_h * h, n_w * w),
        in_channels=channels,
        classifier="gap",
        pool_norm=pools,
        num_classes=names["classifier.bias"][0] if pools and "classifier.bias" in names else None,
        activation=ACTIVATIONS[activation],
        layer_norm_eps=written.get("layer_norm_eps", 1e-12),
        qkv_bias=any(f"encoder.layer.0.attention.attention.{name}" in names for name in biases),
    )


_SIGNATURE, _WITHOUT = r"embeddings\.patch_embeddings\.projection\.weight$", r"(cls_token|position_embeddings)$"
FORMAT = Format(videomae, describe, _SIGNATURE, without=_WITHOUT, roots=("videomae.",), dropped=dropped("videomae"))
