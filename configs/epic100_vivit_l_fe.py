"""ViViT-L/16x2, Model 2 (factorised encoder), on EPIC-Kitchens-100, verbs and nouns: the published recipe.

    python -m vivit_jax.main --config=configs/epic100_vivit_l_fe.py --workdir=gs://BUCKET/epic100_vivit_l_fe \\
        --config.init_from.path=gs://BUCKET/k400_vivit_l_fe --config.init_from.temporal_encoder=random

Initialised from a run on Kinetics-400 (Table 4, second row). The released Kinetics model has 24 temporal layers, this
one has 4, so its temporal encoder is initialised at random (`init_from.temporal_encoder`); a Kinetics run with 4 layers
needs no such flag.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 43.6 action top-1 with 4 x 1 views (the released model); actions are scored by the product of the softmax of
verb and noun.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    config = recipes.published("epic_kitchens100", "ViViT-L/16x2", "factorised_encoder")
    config.model.temporal_layers = 4
    return config
