"""Names of Hugging Face's ViViT (Model 1) and ViT: on disk, which are written, and of version 5 in memory."""

from collections.abc import Mapping
from typing import Any

from vivit_jax.convert.tables import transforms
from vivit_jax.convert.tables.rows import NAMES, Format, Hints, Row, Shapes, dropped, row
from vivit_jax.convert.tables.sizes import clip_grid, count_layers, heads_of, is_image_model, shape_of, space_grid
from vivit_jax.models import ViViTConfig

ACTIVATIONS: Mapping[str, str] = NAMES["activations"]  # `hidden_act` -> our `activation`


def huggingface(config: ViViTConfig) -> list[Row]:
    """Returns the rows of Model 1 with tubelets and a class token (`vivit.`), or of an image ViT (`vit.`).

    Models without a head are stored without the prefix, and with a pooler: our pre-logits layer.
    """
    image = is_image_model(config)
    kernel = transforms.image_kernel(config, transforms.CONVOLUTION) if image else transforms.CONVOLUTION
    if not image and (config.attention, config.tokenizer) != ("spatiotemporal", "tubelet"):
        way_out = "to start such a model from their weights use config.init_from or convert.initialise"
        theirs = "Hugging Face has ViViT's Model 1 with tubelets"
        raise ValueError(f"{theirs}, not {config.attention} with {config.tokenizer}: {way_out}")
    if config.classifier != "token" or isinstance(config.num_classes, tuple):
        ours = f"classifier={config.classifier!r} and num_classes={config.num_classes}"
        raise ValueError(f"Hugging Face's ViViT has a class token and one head; this model has {ours}")
    rows: list[Row] = []
    for prefix in ("vit." if image else "vivit.", ""):
        embeddings = f"{prefix}embeddings"
        rows += [
            row(f"{embeddings}.cls_token", "encoder/class_token", transforms.VECTOR),
            row(f"{embeddings}.position_embeddings", "encoder/position_embedding", transforms.SEQUENCE),
            row(f"{embeddings}.patch_embeddings.projection.weight", "tokenizer/kernel", kernel),
            row(f"{embeddings}.patch_embeddings.projection.bias", "tokenizer/bias"),
            *pair(f"{prefix}layernorm", "encoder/norm", "norm"),
        ]
        for version, block in enumerate(("encoder.layer", "layers")):
            for *names, ours, kind in NAMES["huggingface"]["parts"]:
                name = f"{prefix}{block}.{{layer}}.{names[version]}"
                rows += pair(name, f"encoder/layers/{ours}", kind, config.num_heads)
        if config.representation_size:
            rows += pair(f"{prefix}pooler.dense", "pre_logits", "dense")
    if config.num_classes is not None:
        rows += pair("classifier", "head", "dense")
    return rows


def pair(name: str, ours: str, kind: str, num_heads: int = 1) -> list[Row]:
    """Returns the rows of a PyTorch layer: `dense`, `norm`, `projection` to heads or `output` of heads."""
    if kind == "norm":
        return [row(f"{name}.weight", f"{ours}/scale"), row(f"{name}.bias", f"{ours}/bias")]
    weight, bias = transforms.TRANSPOSED, None
    if kind == "projection":
        weight = bias = transforms.projection(num_heads)
    elif kind == "output":
        weight = transforms.output_projection(num_heads)
    return [row(f"{name}.weight", f"{ours}/kernel", weight), row(f"{name}.bias", f"{ours}/bias", bias)]


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the model with these shapes and `config.json`.

    Without `config.json`: ViViT has the tanh GELU and eps 1e-6, ViT the exact GELU and eps 1e-12, as their classes.
    """
    written = metadata.get("config") or {}
    names = {name.removeprefix("vivit.").removeprefix("vit."): shape for name, shape in shapes.items()}
    d, channels, *time, h, w = shape_of(names, "embeddings.patch_embeddings.projection.weight", 4, 5)
    slots = shape_of(names, "embeddings.position_embeddings", 3)[1] - 1
    on_disk = "encoder.layer.0.intermediate.dense.weight"
    mlp = shape_of(names, on_disk if on_disk in names else "layers.0.mlp.fc1.weight", 2)[0]
    queries = ("encoder.layer.0.attention.attention.query.bias", "layers.0.attention.q_proj.bias")
    activation = written.get("hidden_act", "gelu_fast" if time else "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"config.json says hidden_act={activation!r}; ViViT here has {', '.join(ACTIVATIONS)}")
    if "pooler.dense.bias" in names and (pooler := written.get("pooler_act", "tanh")) != "tanh":
        raise ValueError(f"config.json says pooler_act={pooler!r}; the pre-logits layer here has tanh")
    if (image_size := written.get("image_size")) is not None and hints.grid is None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        frames = (written.get("num_frames", 32) // time[0],) if time else ()
        hints = Hints((*frames, height // h, width // w), hints.num_heads, hints.target)
    t = time[0] if time else 1
    n_t, n_h, n_w = clip_grid(slots, (t, h, w), hints) if time else (1, *space_grid(slots, hints))
    heads = written.get("num_attention_heads")
    return ViViTConfig(
        hidden_size=d,
        num_heads=heads if heads is not None and hints.num_heads is None else heads_of(d, hints),
        num_layers=count_layers(names, r"(encoder\.layer|layers)\.(?P<layer>\d+)\.", written.get("num_hidden_layers")),
        mlp_dim=mlp,
        tokenizer="tubelet" if time else "uniform_frames",
        tubelet_size=(t, h, w),
        num_frames=n_t * t,
        image_size=(n_h * h, n_w * w),
        in_channels=channels,
        num_classes=names["classifier.bias"][0] if "classifier.bias" in names else None,
        representation_size=names["pooler.dense.bias"][0] if "pooler.dense.bias" in names else None,
        activation=ACTIVATIONS[activation],
        layer_norm_eps=written.get("layer_norm_eps", 1e-6 if time else 1e-12),
        qkv_bias=any(name in names for name in queries),
    )


_SIGNATURE = r"embeddings\.patch_embeddings\.projection\.weight$"
FORMAT = Format(huggingface, describe, _SIGNATURE, roots=("vivit.", "vit."), dropped=dropped("huggingface"))
