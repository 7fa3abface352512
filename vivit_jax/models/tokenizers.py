"""Tokenizers (section 3.2): uniform frame sampling and tubelet embedding."""

import flax.linen as nn
import jax
import numpy as np

from vivit_jax.models.config import ViViTConfig


def uniform_frame_indices(num_frames: int, num_sampled: int) -> np.ndarray:
    """Returns the frames that uniform frame sampling embeds (section 3.2, figure 2): evenly spaced, away from the ends.

    Index i of n = `num_sampled` is min(round(i T / (n + 1)), T - 1) for i = 1 .. n, halves rounded to even, as in the
    published code (scenic, `common_lib/video_utils.py`); all frames if n = T.
    """
    if not 1 <= num_sampled <= num_frames:
        raise ValueError(f"{num_sampled} frames cannot be sampled from {num_frames}; ask for 1 to {num_frames}")
    if num_sampled == num_frames:
        return np.arange(num_frames)
    times = np.arange(1, num_sampled + 1) * (num_frames / (num_sampled + 1))
    return np.minimum(np.round(times).astype(int), num_frames - 1)


def patches(video: jax.Array, config: ViViTConfig) -> jax.Array:
    """Cuts clips [B, T, H, W, C] into the tubelets or patches that are embedded: [B, n_t, n_h, n_w, t h w C]."""
    (n_t, n_h, n_w), (_, h, w) = config.grid, config.tubelet_size
    if config.tokenizer == "uniform_frames":
        video = video[:, uniform_frame_indices(config.num_frames, n_t)]  # [B, n_t, H, W, C]
    t = video.shape[1] // n_t
    x = video.reshape(-1, n_t, t, n_h, h, n_w, w * config.in_channels)  # pixels of a patch row stay together
    return x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, n_t, n_h, n_w, t * h * w * config.in_channels)


class Tokenizer(nn.Module):
    """Section 3.2, embedding of a clip as a grid of tokens: each tubelet or patch is projected linearly to d.

    With `tubelet` (figure 3) the kernel is (t, h, w, C, d): a 3-D convolution whose stride is its kernel size, computed
    as one matrix product. With `uniform_frames` (figure 2) the kernel is the image model's, (h, w, C, d), applied to
    n_t evenly spaced frames (`uniform_frame_indices`).

    Parameters: `kernel`, LeCun normal; `bias` (d,), zero. Both and the product are float32 under bfloat16 compute.
    """

    config: ViViTConfig

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Embeds clips [B, T, H, W, C] in [-1, 1] as [B, n_t, n_h, n_w, d]."""
        config = self.config
        (t, h, w), channels = config.tubelet_size, config.in_channels
        d, dtype = config.hidden_size, config.param_dtype
        shape = (t, h, w, channels, d) if config.tokenizer == "tubelet" else (h, w, channels, d)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (d,), dtype)
        x = patches(video.astype(dtype), config)
        return x @ kernel.astype(dtype).reshape(-1, d) + bias.astype(dtype)  # [B, n_t, n_h, n_w, d]
