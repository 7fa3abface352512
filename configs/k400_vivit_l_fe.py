"""ViViT-L/16x2, Model 2 (factorised encoder), on Kinetics-400: the released model.

    python -m vivit_jax.main --config=configs/k400_vivit_l_fe.py --workdir=gs://BUCKET/k400_vivit_l_fe \\
        --config.init_from.path=VIT_L_16

Initialised from a ViT-L/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 80.3 top-1 with 4 x 3 views (the released model), which has 24 temporal layers; the paper's Model 2 has
4.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    config = recipes.published("kinetics400", "ViViT-L/16x2", "factorised_encoder")
    config.model.temporal_layers = 24
    return config
