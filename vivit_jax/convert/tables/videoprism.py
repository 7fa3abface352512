"""Names of VideoPrism's video encoders (arXiv:2402.13217; public code `videoprism/encoders.py`, `layers.py`).

They are Model 2 without pooling between its encoders (`frame_pooling=False`) and without a head. The blocks differ:

* Attention logits capped by 50 tanh(x / 50) and the exact GELU: config fields, the same in every released model.
* Frames in [0, 1], ours in [-1, 1]: folded into the patch projection, exactly, since nothing is padded.
* LayerNorms store scale - 1: one is added.
* `per_dim_scale`, a learned factor on each dimension of the queries, in no released video encoder: refused.
* Norms after a branch (`norm_policy="primer_hybrid"`): refused. The policies `post` and `post_skip`, in no released
  video encoder either, use the names of `pre` and cannot be distinguished from it.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vivit_jax.convert.tables.rows import Dropped, Format, Hints, Row, Shapes, row
from vivit_jax.convert.tables.sizes import shape_of, space_grid
from vivit_jax.convert.tables.transforms import Transform, derived
from vivit_jax.models import ViViTConfig

CHANNELS = 3
# Not visible in the weights.
RELEASED: Mapping[str, Any] = {
    "attention": "factorised_encoder",
    "frame_pooling": False,
    "tokenizer": "uniform_frames",
    "activation": "gelu",
    "attention_logit_cap": 50.0,
    "layer_norm_eps": 1e-6,
}
_PROJECTION = "patch_projection/linear"
_STACK = "{part}_encoder/transformers_stack/x_layers"  # layers stacked along the first axis, by a scan


def videoprism(config: ViViTConfig) -> list[Row]:
    """Returns the rows of a video encoder, its layers stacked; read only."""
    fields = {name: (getattr(config, name), value) for name, value in RELEASED.items()}
    differences = [f"{name}={ours!r}, not {value!r}" for name, (ours, value) in fields.items() if ours != value]
    if config.tubelet_size[0] != 1:
        differences.append(f"tubelet_size={config.tubelet_size}, not one frame")
    if differences:
        way_out = "to start such a model from their weights use config.init_from or convert.initialise"
        raise ValueError(f"VideoPrism's encoders are another model than this ({'; '.join(differences)}): {way_out}")
    patch = (*config.tubelet_size[1:], config.in_channels)

    def patches(x: np.ndarray) -> np.ndarray:
        """[h w C, d], pixels row by row, channels last -> [h, w, C, d]."""
        return x.reshape(*patch, -1) if x.ndim == 2 and x.shape[0] == math.prod(patch) else x

    rows = [_read(f"{_PROJECTION}/kernel", "tokenizer/kernel", patches), _read(f"{_PROJECTION}/bias", "tokenizer/bias")]
    for part in ("spatial", "temporal"):
        encoder = f"{part}_encoder"
        rows += [_read(f"{part}_pos_emb/emb_var", f"{encoder}/position_embedding")]
        rows += _norm(f"{part}_ln", f"{encoder}/norm")
        block, layers = _STACK.format(part=part), f"{encoder}/layers"
        rows += [
            *_norm(f"{block}/layer_norm", f"{layers}/norm_attention"),
            *_norm(f"{block}/ff_layer/layer_norm", f"{layers}/norm_mlp"),
            _read(f"{block}/ff_layer/ffn_layer1/linear/{{leaf}}", f"{layers}/mlp/dense_in/{{leaf}}"),
            _read(f"{block}/ff_layer/ffn_layer2/linear/{{leaf}}", f"{layers}/mlp/dense_out/{{leaf}}"),
            _read(f"{block}/self_attention/post/w", f"{layers}/attention/out/kernel", _output),
            _read(f"{block}/self_attention/post/b", f"{layers}/attention/out/bias"),
            _read(f"{block}/self_attention/{{part}}/w", f"{layers}/attention/{{part}}/kernel"),
            _read(f"{block}/self_attention/{{part}}/b", f"{layers}/attention/{{part}}/bias"),
        ]
    return rows


def describe(shapes: Shapes, metadata: Mapping[str, Any], hints: Hints) -> ViViTConfig:
    """Returns the config of the video encoder with these shapes, without a head; patches are squares of RGB pixels."""
    norms = [name for name in shapes if re.search(r"(spatial|temporal)_encoder/.*/(pre|post)_layer_norm/", name)]
    if norms:
        theirs = f"{norms[0]} and {len(norms) - 1} more: norms before and after each branch"
        ours = "where ViViT's block (eqs. 2 and 3) has them before alone; only norm_policy='pre' can be read"
        raise ValueError(f"{theirs} (norm_policy='primer_hybrid'), {ours}")
    pixels, d = shape_of(shapes, f"{_PROJECTION}/kernel", 2)
    patch = math.isqrt(pixels // CHANNELS)
    if CHANNELS * patch * patch != pixels:
        raise ValueError(f"{_PROJECTION}/kernel has {pixels} rows, which are no square patch of {CHANNELS} channels")
    n_h, n_w = space_grid(shape_of(shapes, "spatial_pos_emb/emb_var", 2)[0], hints)
    block = _STACK.format(part="spatial")
    layers, _, heads, _ = shape_of(shapes, f"{block}/self_attention/query/w", 4)
    return ViViTConfig(
        **RELEASED,
        hidden_size=d,
        num_heads=heads,
        num_layers=layers,
        temporal_layers=shape_of(shapes, f"{_STACK.format(part='temporal')}/layer_norm/scale", 2)[0],
        mlp_dim=shape_of(shapes, f"{block}/ff_layer/ffn_layer1/linear/kernel", 3)[-1],
        tubelet_size=(1, patch, patch),
        num_frames=shape_of(shapes, "temporal_pos_emb/emb_var", 2)[0],
        image_size=(n_h * patch, n_w * patch) if n_h != n_w else n_h * patch,
        in_channels=CHANNELS,
        num_classes=None,
        qkv_bias=f"{block}/self_attention/query/b" in shapes,
    )


def fold(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Folds pixels into the projection, lazily; strips `vision_encoder/` of video-text models.

    Pixels are u in [0, 1] there, v = 2 u - 1 here; K u + b = (K / 2) v + (b + K 1 / 2), K 1 the sum over a patch.
    """
    folded = {name.removeprefix("vision_encoder/"): leaf for name, leaf in leaves.items()}
    kernel, bias = (folded.get(f"{_PROJECTION}/{name}") for name in ("kernel", "bias"))
    if kernel is not None and bias is not None:
        folded[f"{_PROJECTION}/kernel"] = derived(kernel, lambda x: x / 2)
        folded[f"{_PROJECTION}/bias"] = derived(bias, lambda x: x + kernel.read().astype(np.float64).sum(axis=0) / 2)
    return folded


def _read(name: str, ours: str, load: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Row:
    return row(name, ours, Transform(load=lambda x: [load(x)]))


def _norm(name: str, ours: str) -> list[Row]:
    scale = _read(f"{name}/scale", f"{ours}/scale", lambda x: x.astype(np.promote_types(x.dtype, np.float32)) + 1)
    return [scale, _read(f"{name}/bias", f"{ours}/bias")]


def _output(x: np.ndarray) -> np.ndarray:
    """[layers, d, heads, head_dim] -> [layers, heads, head_dim, d]."""
    return np.moveaxis(x, 1, 3) if x.ndim == 4 else x


_DROPPED = (
    Dropped(r"text_encoder/", "the text encoder of a video-text model"),
    Dropped(r"auxiliary_encoder/", "layers between the video encoder and the video embedding", harmless=False),
    Dropped(r"contrastive_vision_pooler/", "the pooling that makes the video embedding", harmless=False),
)
_SIGNATURE = r"(spatial|temporal)_encoder/transformers_stack/x_layers/"
FORMAT = Format(videoprism, describe, _SIGNATURE, roots=("vision_encoder/",), dropped=_DROPPED, fold=fold)
