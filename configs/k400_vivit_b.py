"""ViViT-B/16x2, Model 1, on Kinetics-400: the released model, and Model 1 of Table 2.

    python -m vivit_jax.main --config=configs/k400_vivit_b.py --workdir=gs://BUCKET/k400_vivit_b \\
        --config.init_from.path=VIT_B_16

Initialised from a ViT-B/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 79.9 top-1 with 4 x 3 views (the released model); 80.0 (Table 2).
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    return recipes.published("kinetics400", "ViViT-B/16x2", "spatiotemporal")
