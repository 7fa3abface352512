"""Small models for tests: configs, random parameters (none of them 0 or 1), random clips."""

import jax
import numpy as np

from vivit_jax.models import ViViTConfig, abstract_params

MODELS = {
    "model1": {"attention": "spatiotemporal"},
    "model2": {"attention": "factorised_encoder", "temporal_layers": 2},
    "average_pool": {"attention": "factorised_encoder", "temporal_layers": 0},
    "model3": {"attention": "factorised_self_attention"},
    "model4": {"attention": "factorised_dot_product"},
}


def small_config(**fields):
    """A config with a grid of 2 x 2 x 3 (not square), d = 8, two heads, two layers."""
    sizes = {"hidden_size": 8, "num_heads": 2, "num_layers": 2, "mlp_dim": 12, "num_classes": 5}
    return ViViTConfig(**{**sizes, "tubelet_size": (2, 4, 4), "num_frames": 4, "image_size": (8, 12), **fields})


def random_params(config, seed=0, dtype=np.float64):
    """Normal noise in every parameter, with mean 1 for the scales of LayerNorms."""
    rng = np.random.default_rng(seed)

    def leaf(path, abstract):
        noise = 0.3 * rng.normal(size=abstract.shape)
        return (noise + ("scale" in str(path[-1]))).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def random_video(config, batch=2, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, *config.video_shape)).astype(dtype)
