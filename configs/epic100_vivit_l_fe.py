"""ViViT-L/16x2, Model 2 (factorised encoder), on EPIC-Kitchens-100, verbs and nouns: the published recipe.

    python -m vivit_jax.main --config=configs/epic100_vivit_l_fe.py --workdir=gs://BUCKET/epic100_vivit_l_fe \\
        --config.init_from.path=gs://BUCKET/k400_vivit_l_fe --config.init_from.temporal_encoder=random

The weights are those of a run on Kinetics-400 (Table 4, second row). The released Kinetics model has 24 temporal
layers and this one 4, so that encoder starts at random; a Kinetics run of four layers lends its own if the flag is
left out. Without a path the run starts from scratch.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold it, docs/tpu.md how. The mesh must divide the
batch of 64.
Published: 43.6 action top-1 with 4 x 1 views (the released model), scored on the product of the verb's and the noun's
softmax.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    config = recipes.published("epic_kitchens100", "ViViT-L/16x2", "factorised_encoder")
    config.model.temporal_layers = 4
    return config
