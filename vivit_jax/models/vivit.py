"""ViViT (section 3): Models 1 to 4 and the average-pool baseline, from a clip to logits."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax.models.blocks import Encoder
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.tokenizers import Tokenizer


class ViViT(nn.Module):
    """Section 3.3, Models 1 to 4, with the tokenizers of section 3.2 and a linear classifier.

    Parameters: `tokenizer`; `encoder` (Models 1, 3, 4) or `spatial_encoder` and, unless `temporal_layers` is 0,
    `temporal_encoder` (Model 2); `pre_logits` if `representation_size` is set; `head`, or `head_<name>` for each of
    several heads. Parameters under `*/layers` are stacked, [L, ...].
    """

    config: ViViTConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, *, train: bool = False, features: bool = False, sow_attention: bool = False
    ) -> Any:
        """Classifies clips, `video` [B, T, H, W, C] float in [-1, 1], of the sizes of the config.

        Args:
          train: enables dropout and stochastic depth; if a rate is above 0, `rngs={"dropout": key}` is needed.
          features: return the activations before the head, see below.
          sow_attention: put the attention weights of all layers into the collection `intermediates` (use
            `mutable=["intermediates"]`): [L, B, ..., heads, N_q, N_k].

        Returns:
          Logits [B, classes], float32 (float64 under float64 compute); {head: [B, classes]} if the config names heads;
          `pre_logits` if it has no head. With `features`, a dict:

          * `tokens`: output of the last encoder. Model 1: [B, N, d] with N = n_t n_h n_w, plus a class token in front,
            with `pool_norm` [B, 1, d]. Models 3, 4: [B, N, d], ordered by time, row, column. Model 2: [B, n_t, d], plus
            a class token in front; the baseline: [B, n_t, d], the pooled frames.
          * `spatial_tokens`, Model 2 only: output of the spatial encoder, [B, n_t, n_h n_w, d], plus class tokens.
          * `pre_logits`: [B, d] or [B, representation_size], the input of the head.
        """
        config = self.config
        self._check(video, train)
        (n_t, n_h, n_w), d = config.grid, config.hidden_size
        n_s = n_h * n_w
        token = config.classifier == "token"
        out = {}

        x = Tokenizer(config, name="tokenizer")(video).reshape(-1, n_t, n_s, d)  # [B, n_t, n_s, d]
        first = patch_encoder(config, deterministic=not train, sow_attention=sow_attention)
        if config.attention == "spatiotemporal":  # Model 1
            x = first(x.reshape(-1, n_t * n_s, d))  # [B, 1 + N, d]
            class_token = token
        elif config.attention == "factorised_encoder":  # Model 2
            x = out["spatial_tokens"] = first(x)  # [B, n_t, 1 + n_s, d]
            x = _pool(x, token)  # [B, n_t, d]
            if config.temporal_layers:
                options = {"deterministic": not train, "sow_attention": sow_attention, "remat": config.remat_temporal}
                temporal = Encoder(config, config.temporal_layers, token, times=n_t, name="temporal_encoder", **options)
                x = temporal(x)  # [B, 1 + n_t, d]
            class_token = token and config.temporal_layers > 0
        else:  # Models 3 and 4
            x = first(x).reshape(-1, n_t * n_s, d)  # [B, N, d]
            class_token = False
        out["tokens"] = x
        x = _pool(x, class_token)  # [B, d]

        wide = {"dtype": config.param_dtype, "param_dtype": config.param_dtype}
        if config.representation_size:
            x = nn.tanh(nn.Dense(config.representation_size, name="pre_logits", **wide)(x))  # [B, representation_size]
        out["pre_logits"] = x
        if features and not self.is_initializing():
            return out
        logits: dict[str | None, jax.Array] = {}  # [B, classes] of each head
        for head, classes in config.heads:
            name = "head" if head is None else f"head_{head}"
            logits[head] = nn.Dense(classes, kernel_init=nn.initializers.zeros_init(), name=name, **wide)(x)
        return logits.get(None, logits) if logits else x

    def _check(self, video: jax.Array, train: bool) -> None:
        config = self.config
        if video.ndim != 5 or video.shape[1:] != config.video_shape:
            expected = f"(batch, {', '.join(map(str, config.video_shape))}): batch, num_frames, height, width, channels"
            advice = "change the clips, or the config's num_frames, image_size, in_channels"
            raise ValueError(f"video has shape {tuple(video.shape)}, the config needs {expected}; {advice}")
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(f"video is {video.dtype}, the model needs floats in [-1, 1]; for uint8: x / 127.5 - 1")
        if config.dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError("dtype='float64' needs jax.config.update('jax_enable_x64', True); or choose float32")
        rates = (config.dropout_rate, config.attention_dropout_rate, config.stochastic_depth_rate)
        if train and any(rates) and not self.is_initializing() and not self.has_rng("dropout"):
            raise ValueError('train=True with dropout or stochastic depth needs rngs={"dropout": key} in apply')


def patch_encoder(config: ViViTConfig, **options: Any) -> Encoder:
    """Returns the encoder that sees the patches, inside a module; `options` are those of `Encoder`.

    Model 1: of all tokens [B, N, d]; Model 2: of frames, [B, n_t, n_s, d]; Models 3, 4: of the grid [B, n_t, n_s, d].
    """
    token = config.classifier == "token"
    joint = config.attention == "spatiotemporal"
    options |= {"logical_axes": ("tokens",) if joint else ("time", None)}
    if config.attention == "factorised_encoder":
        return Encoder(config, config.num_layers, token, name="spatial_encoder", **options)
    options |= {"times": config.grid[0], "token_axes": 1 if joint else 2, "name": "encoder"}
    return Encoder(config, config.num_layers, token, **options)


def _pool(x: jax.Array, class_token: bool) -> jax.Array:
    """Pools tokens, [..., N, d] -> [..., d]: takes the class token, which is the first, or the mean of all tokens."""
    return x[..., 0, :] if class_token else x.mean(axis=-2)


def abstract_params(config: ViViTConfig, model: nn.Module | None = None) -> Any:
    """Returns the parameter tree of a model, default `ViViT(config)`, as `jax.ShapeDtypeStruct`, without memory."""
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    with jax.enable_x64(config.dtype == "float64" or jax.config.jax_enable_x64):
        key = jax.eval_shape(jax.random.key, 0)  # a real one costs the compilation of a program
        return jax.eval_shape((model or ViViT(config)).init, key, video)["params"]


def count_parameters(config: ViViTConfig) -> int:
    """Returns the number of trainable parameters (table 2 gives them in millions)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))
