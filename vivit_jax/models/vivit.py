"""ViViT: Models 1 to 4 of section 3.3 and the average-pool baseline, from a clip to logits."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax.models.blocks import Encoder
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.tokenizers import Tokenizer


class ViViT(nn.Module):
    """A video vision transformer (section 3), every choice of it in `config`.

    Parameters: `tokenizer`; `encoder` (Models 1, 3, 4) or `spatial_encoder` and, unless `temporal_layers` is
    0, `temporal_encoder` (Model 2); `pre_logits` where `representation_size` is set; `head`, or `head_<name>`
    for each of several. Leaves under `*/layers` are stacked, [L, ...].

    Attributes:
      config: the architecture.
    """

    config: ViViTConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, *, train: bool = False, features: bool = False, sow_attention: bool = False
    ) -> Any:
        """Classifies clips.

        Args:
          video: [B, T, H, W, C] float in [-1, 1], the sizes those of the config.
          train: dropout and stochastic depth on; then `rngs={"dropout": key}` is needed if any of their rates
            is above 0.
          features: return what comes before the head instead, see below.
          sow_attention: put the attention weights of every layer into the collection `intermediates` (stacked
            over layers in front: [L, B, ..., heads, N_q, N_k]), to be taken with `mutable=["intermediates"]`.
            The weights are computed in full, whatever the backend.

        Returns:
          Logits [B, classes], float32 (float64 under float64 compute); {head: [B, classes]} where the config
          names heads; where it has no head, `pre_logits` of below. With `features`, a dict:

          * `tokens`: the last encoder's output after its LayerNorm. Model 1: [B, n_t n_h n_w, d], one more in
            front with a class token. Models 3, 4: [B, n_t n_h n_w, d], time-major, then rows, then columns.
            Model 2: [B, n_t, d], one more in front with a class token; the baseline: [B, n_t, d], the frames'
            vectors; without `frame_pooling` as Models 3 and 4.
          * `spatial_tokens`, Model 2 only: the spatial encoder's output [B, n_t, n_h n_w, d], one more in
            front of the third axis with a class token.
          * `pre_logits`: [B, d] or [B, representation_size], the input of the head.

        Raises:
          ValueError: the shape of the video is not the config's, it holds integers, a key for dropout is
            missing, or dtype='float64' without jax_enable_x64.
        """
        config = self.config
        self._check(video, train)
        n_t, n_h, n_w = config.grid
        token = config.classifier == "token"
        encoder = functools.partial(Encoder, config, deterministic=not train, sow_attention=sow_attention)
        out = {}

        x = Tokenizer(config, name="tokenizer")(video)  # [B, n_t, n_h, n_w, d]
        x = x.reshape(-1, n_t, n_h * n_w, config.hidden_size)  # [B, n_t, n_s, d]
        if config.attention == "spatiotemporal":  # Model 1
            x = x.reshape(-1, n_t * n_h * n_w, config.hidden_size)  # [B, N, d]
            x = encoder(config.num_layers, token, places=("tokens",), name="encoder")(x)  # [B, 1 + N, d]
            out["tokens"] = x
            x = _pool(x, token)  # [B, d]
        elif config.attention == "factorised_encoder":  # Model 2
            temporal = functools.partial(encoder, config.temporal_layers, remat=config.remat_temporal)
            x = encoder(config.num_layers, token, places=("time", None), name="spatial_encoder")(x)
            # [B, n_t, 1 + n_s, d]
            out["spatial_tokens"] = x
            if config.frame_pooling:
                x = _pool(x, token)  # [B, n_t, d]
                if config.temporal_layers:
                    x = temporal(token, name="temporal_encoder")(x)  # [B, 1 + n_t, d]
            else:
                x = x.swapaxes(1, 2)  # [B, n_s, n_t, d]: each place of the frame is a sequence in time
                x = temporal(False, places=("space", None), name="temporal_encoder")(x)
                x = x.swapaxes(1, 2).reshape(-1, n_t * n_h * n_w, config.hidden_size)  # [B, N, d]
            out["tokens"] = x
            x = _pool(x, token and config.temporal_layers > 0)  # [B, d]
        else:  # Models 3 and 4
            x = encoder(config.num_layers, False, token_axes=2, places=("time", None), name="encoder")(x)
            # [B, n_t, n_s, d]
            out["tokens"] = x = x.reshape(-1, n_t * n_h * n_w, config.hidden_size)  # [B, N, d]
            x = _pool(x, False)  # [B, d]

        wide = {"dtype": config.param_dtype, "param_dtype": config.param_dtype}
        if config.representation_size:
            x = nn.Dense(config.representation_size, name="pre_logits", **wide)(x)
            x = nn.tanh(x)  # [B, representation_size]
        out["pre_logits"] = x
        if features and not self.is_initializing():
            return out
        logits: dict[str | None, jax.Array] = {}
        for head, classes in config.heads:
            name = "head" if head is None else f"head_{head}"
            dense = nn.Dense(classes, kernel_init=nn.initializers.zeros_init(), name=name, **wide)
            logits[head] = dense(x)  # [B, classes]
        if not logits:
            return x
        return logits.get(None, logits)

    def _check(self, video: jax.Array, train: bool) -> None:
        config = self.config
        if video.ndim != 5 or video.shape[1:] != config.video_shape:
            expected = ", ".join(map(str, config.video_shape))
            raise ValueError(
                f"video has shape {tuple(video.shape)}, the config wants (batch, {expected}): batch, "
                "num_frames, height, width, channels; change the clips, or the config's "
                "num_frames, image_size, in_channels"
            )
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(f"video is {video.dtype}, the model wants floats in [-1, 1]; for uint8: x / 127.5 - 1")
        if config.dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError("dtype='float64' needs jax.config.update('jax_enable_x64', True); or choose float32")
        rates = (config.dropout_rate, config.attention_dropout_rate, config.stochastic_depth_rate)
        if train and any(rates) and not self.is_initializing() and not self.has_rng("dropout"):
            raise ValueError('train=True with dropout or stochastic depth needs rngs={"dropout": key} in apply')


def _pool(x: jax.Array, class_token: bool) -> jax.Array:
    """[..., N, d] -> [..., d]: the class token, which is the first, or the average of all tokens."""
    return x[..., 0, :] if class_token else x.mean(axis=-2)


def abstract_params(config: ViViTConfig) -> Any:
    """The tree of `jax.ShapeDtypeStruct` that the model's parameters fill; costs no memory."""
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    with jax.enable_x64(config.dtype == "float64" or jax.config.jax_enable_x64):
        return jax.eval_shape(ViViT(config).init, jax.random.key(0), video)["params"]


def count_parameters(config: ViViTConfig) -> int:
    """How many numbers the model learns (table 2 of the paper gives them in millions)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))
