"""ViViT-L/16x2, Model 1, on Moments in Time: the published recipe (the paper's appendix).

    python -m vivit_jax.main --config=configs/mit_vivit_l.py --workdir=gs://BUCKET/mit_vivit_l \\
        --config.init_from.path=VIT_L_16

Initialised from a ViT-L/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: a row of Table 6, whose value is not recorded here. The paper leaves open, and this config chooses: Model 1
(the paper uses Model 2 for small data sets), 4 x 3 views as for Kinetics, and greyscale with probability 0.1, as in the
released Kinetics configurations.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    return recipes.published("moments_in_time", "ViViT-L/16x2", "spatiotemporal")
