"""ViViT-B/16x2, Model 2 (factorised encoder), on Kinetics-400: the released model.

    python -m vivit_jax.main --config=configs/k400_vivit_b_fe.py --workdir=gs://BUCKET/k400_vivit_b_fe \\
        --config.init_from.path=VIT_B_16

Initialised from a ViT-B/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 78.4 top-1 with 4 x 3 views (the released model); 78.8 (Table 2). The released configuration has half the
learning rate of the appendix; `configs/paper/table2.py:model2` has the appendix's.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    config = recipes.published("kinetics400", "ViViT-B/16x2", "factorised_encoder")
    config.optimizer.learning_rate = 0.05  # the appendix: 0.1
    return config
