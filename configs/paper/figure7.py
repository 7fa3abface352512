"""Figure 7, backbones: accuracy and cost from ViViT-Ti to ViViT-H (Model 1, tubelets of 16 x 16 x 2, Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/figure7.py:s --workdir=gs://BUCKET/figure7_s \\
        --config.init_from.path=VIT_S_16
    python -m vivit_jax.cost --only=figure7

Initialised from the image model of the same size.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: a figure, whose values are not recorded here; those of B and L are in Tables 2 and 5. The rows are all
backbones of section 4.1. `vivit_jax.cost` prints the cost.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "ti": "ViViT-Ti/16x2",
    "s": "ViViT-S/16x2",
    "b": "ViViT-B/16x2: 80.0 (Table 2)",
    "l": "ViViT-L/16x2: 80.3 (Table 5)",
    "h": "ViViT-H/16x2",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    return recipes.published("kinetics400", f"ViViT-{row.capitalize()}/16x2", "spatiotemporal")
