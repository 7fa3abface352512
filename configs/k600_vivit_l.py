"""ViViT-L/16x2, Model 1, on Kinetics-600: the published recipe (the paper's appendix; Table 6).

    python -m vivit_jax.main --config=configs/k600_vivit_l.py --workdir=gs://BUCKET/k600_vivit_l \\
        --config.init_from.path=VIT_L_16

Initialised from a ViT-L/16 trained on ImageNet-21k, or on JFT for the row that says so.
The paper does not say how frames are resized for crops of 320 pixels: here in proportion, to a short side of 366.
These crops fit on fewer slices, v3-32 among them.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 82.5 / 95.6 top-1 / top-5 with 4 x 3 views, initialised from ImageNet-21k (Table 6).
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")

ROWS = {
    "224": "ViViT-L/16x2: 82.5 / 95.6 (Table 6)",
    "320": "ViViT-L/16x2, crops of 320: 83.0 / 95.7 (Table 6)",
    "jft": "ViViT-L/16x2, initialised from JFT: 84.3 / 96.2 (Table 6)",
}


def get_config(row="224"):
    recipes.check_row(row, ROWS)
    config = recipes.published("kinetics600", "ViViT-L/16x2", "spatiotemporal")
    if row == "320":
        recipes.set_crop(config, 320)
    return config
