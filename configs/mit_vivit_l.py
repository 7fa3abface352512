"""ViViT-L/16x2, Model 1, on Moments in Time: the published recipe (the paper's appendix).

    python -m vivit_jax.main --config=configs/mit_vivit_l.py --workdir=gs://BUCKET/mit_vivit_l \\
        --config.init_from.path=VIT_L_16

VIT_L_16 holds the weights of a ViT-L/16 trained on ImageNet-21k; without it the run starts from scratch.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold it, docs/tpu.md how. The mesh must divide the
batch of 64.
Published: a row of Table 6, whose figure is not recorded here. Open, and chosen here: Model 1, since the paper takes
Model 2 for small data sets; the views, 4 x 3 as for Kinetics; greyscale with probability 0.1, which goes with colour
jitter in the published Kinetics configurations.
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


def get_config():
    return recipes.published("moments_in_time", "ViViT-L/16x2", "spatiotemporal")
