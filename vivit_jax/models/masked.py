"""Masked video modelling, pretraining without labels (VideoMAE, arXiv:2203.12602)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.tokenizers import Tokenizer, patches
from vivit_jax.models.vivit import patch_encoder
from vivit_jax.utils.checks import at_least, within


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Masked pretraining: the encoder sees some tubelets, a small decoder reconstructs the others (VideoMAE).

    Attributes:
      mask_ratio: share of the patches of a frame that is masked, in [0, 1), the same ones at all times (tube masking);
        VideoMAE has 0.9. 0: no pretraining, a classifier is trained.
      decoder_layers: blocks of the decoder, at least 1.
      decoder_size: width of the decoder, at least 1; None: half of the encoder's.
      normalise_pixels: the target is each tubelet's pixels, minus their mean and divided by their standard deviation in
        each channel; otherwise the pixels in [0, 1].
    """

    mask_ratio: float = 0.0
    decoder_layers: int = 4
    decoder_size: int | None = None
    normalise_pixels: bool = True

    def __post_init__(self) -> None:
        within("pretrain", self, "[0, 1)", "mask_ratio", hint="0 trains a classifier")
        at_least("pretrain", self, decoder_layers=1, decoder_size=1)

    def decoder(self, config: ViViTConfig) -> ViViTConfig:
        """Returns the config of the decoder's blocks: heads as wide as the encoder's, no class token, no dropout.

        Raises ValueError for an odd width of Model 4's, which gives half of the heads to time and half to space.
        """
        size = self.decoder_size or max(config.hidden_size // 2, 1)
        multiple = 2 if config.attention == "factorised_dot_product" else 1
        if size % multiple:
            raise ValueError(f"pretrain.decoder_size={size} is odd, which Model 4 cannot divide; use an even width")
        most = max(size // config.head_dim, multiple)
        heads = next(n for n in range(most - most % multiple, 0, -multiple) if size % n == 0)
        fields = {"hidden_size": size, "num_heads": heads, "num_layers": self.decoder_layers, "mlp_dim": 4 * size}
        rates = dict.fromkeys(("dropout_rate", "attention_dropout_rate", "stochastic_depth_rate"), 0.0)
        return dataclasses.replace(config, **fields, **rates, classifier="gap", pool_norm=False)

    def visible(self, config: ViViTConfig) -> int:
        """Returns how many patches of a frame the encoder sees; ValueError where it would be none or all."""
        patches_of_frame = config.grid[1] * config.grid[2]
        count = patches_of_frame - int(self.mask_ratio * patches_of_frame)
        if not 0 < count < patches_of_frame:
            problem = f"pretrain.mask_ratio={self.mask_ratio} masks none of the {patches_of_frame} patches of a frame"
            raise ValueError(f"{problem}; use a higher ratio or smaller patches")
        return count


class MaskedViViT(nn.Module):
    """Pretraining of a ViViT's encoder, of Model 2 the spatial one: masked tubelets from visible ones.

    Parameters: `tokenizer` and `encoder` or `spatial_encoder` as in `ViViT`; all others are in `decoder`.
    """

    config: ViViTConfig
    pretrain: PretrainConfig

    @nn.compact
    def __call__(self, video: jax.Array, noise: Any = None, *, train: bool = False) -> dict[str, jax.Array]:
        """Reconstructs clips [B, T, H, W, C] in [-1, 1].

        `noise` [B, n_s], n_s = n_h n_w: the patches with the smallest values are visible; None: random, by the rng
        `dropout`. `train` enables dropout and stochastic depth of the encoder.

        Returns `loss` [B], the mean squared error over the pixels of the masked tubelets; `masked`, bool [B, n_s];
        `pixels` and `predicted`, the tubelets and their reconstruction in [0, 1], [B, n_t, n_s, pixels, C].
        """
        config, visible = self.config, self.pretrain.visible(self.config)
        n_t, n_s = config.grid[0], config.grid[1] * config.grid[2]
        if noise is None:
            noise = jax.random.uniform(self.make_rng("dropout"), (len(video), n_s))
        order = jnp.argsort(noise, axis=-1)
        kept, rank = order[:, :visible], jnp.argsort(order, axis=-1)  # [B, visible], [B, n_s]
        masked = rank >= visible

        tokens = Tokenizer(config, name="tokenizer")(video).reshape(-1, n_t, n_s, config.hidden_size)
        joint = config.attention == "spatiotemporal"  # Model 1: one sequence of all tokens
        if joint:
            tokens = tokens.reshape(len(video), n_t * n_s, -1)
            kept = (n_s * jnp.arange(n_t)[:, None] + kept[:, None]).reshape(len(video), -1)  # [B, n_t visible]
        x = patch_encoder(config, deterministic=not train)(tokens, kept if joint else kept[:, None])
        x = x[..., int(config.classifier == "token") :, :]
        x = x.reshape(-1, n_t, visible, config.hidden_size)
        predicted = Decoder(self.pretrain.decoder(config), train, name="decoder")(x, rank)  # [B, n_t, n_s, pixels, C]

        pixels = 0.5 * patches(video, config).reshape(predicted.shape) + 0.5
        mean, std = 0.0, 1.0
        if self.pretrain.normalise_pixels:  # with the unbiased deviation, as VideoMAE
            ddof = min(1, pixels.shape[3] - 1)
            mean, std = pixels.mean(axis=3, keepdims=True), pixels.std(axis=3, ddof=ddof, keepdims=True) + 1e-6
        error = jnp.square(predicted - (pixels - mean) / std).mean(axis=(1, 3, 4))  # [B, n_s]
        loss = jnp.sum(error * masked, axis=-1) / (n_s - visible)
        return {"loss": loss, "masked": masked, "pixels": pixels, "predicted": predicted * std + mean}


class Decoder(nn.Module):
    """The decoder: blocks as those of the encoder, over the visible tokens and a mask token for each other one."""

    config: ViViTConfig  # of the decoder's blocks
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, rank: jax.Array) -> jax.Array:
        """Maps the visible tokens [B, n_t, visible, d] to pixels [B, n_t, n_s, pixels, C].

        `rank` [B, n_s] is the position of each patch among the visible ones; not below `visible`: it is masked.
        """
        config, (batch, n_t, visible, _) = self.config, x.shape
        wide, n_s = {"dtype": config.param_dtype, "param_dtype": config.param_dtype}, rank.shape[-1]
        x = nn.Dense(config.hidden_size, use_bias=False, name="embed", **wide)(x)
        token = self.param("mask_token", nn.initializers.normal(stddev=0.02), (config.hidden_size,), config.param_dtype)
        rank = rank[:, None, :, None]
        x = jnp.take_along_axis(x, jnp.minimum(rank, visible - 1), axis=2)
        x = jnp.where(rank < visible, x, token)  # [B, n_t, n_s, size]
        if config.attention == "spatiotemporal":
            x = x.reshape(batch, n_t * n_s, -1)
        x = patch_encoder(config, deterministic=not self.train)(x)
        frames = 1 if config.tokenizer == "uniform_frames" else config.tubelet_size[0]
        pixels = frames * config.tubelet_size[1] * config.tubelet_size[2]
        x = nn.Dense(pixels * config.in_channels, name="pixels", **wide)(x)
        return x.reshape(batch, n_t, n_s, pixels, config.in_channels)


def reconstruction(out: dict[str, jax.Array], config: ViViTConfig) -> jax.Array:
    """Returns pictures of `MaskedViViT`'s output, uint8 [B, 3, n_t, H, W, C]: original, masked, reconstructed.

    Each shows the first frame of a tubelet. Masked patches are grey; the reconstruction has the visible ones.
    """
    (n_t, n_h, n_w), (_, h, w), pixels = config.grid, config.tubelet_size, out["pixels"]
    hidden = out["masked"][:, None, :, None, None]
    rows = [pixels, jnp.where(hidden, 0.5, pixels), jnp.where(hidden, out["predicted"], pixels)]
    rows = jnp.stack(rows, axis=1)[..., : h * w, :]  # [B, 3, n_t, n_s, h w, C]
    rows = rows.reshape(-1, 3, n_t, n_h, n_w, h, w, config.in_channels).swapaxes(4, 5)
    rows = rows.reshape(-1, 3, n_t, n_h * h, n_w * w, config.in_channels)
    return jnp.round(255 * jnp.clip(rows, 0, 1)).astype(jnp.uint8)
