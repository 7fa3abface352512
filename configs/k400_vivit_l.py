"""ViViT-L/16x2, Model 1, on Kinetics-400: the published recipe (the paper's appendix; Tables 5 and 6).

    python -m vivit_jax.main --config=configs/k400_vivit_l.py --workdir=gs://BUCKET/k400_vivit_l \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.main --config=configs/k400_vivit_l.py:320 --workdir=gs://BUCKET/k400_vivit_l_320 \\
        --config.init_from.path=VIT_L_16

Initialised from a ViT-L/16 trained on ImageNet-21k, or on JFT for the rows that say so.
The paper does not say how frames are resized for crops of 320 pixels: here in proportion, to a short side of 366.
These crops fit on fewer slices, v3-32 among them.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 80.6 / 94.7 top-1 / top-5 with 4 x 3 views, initialised from ImageNet-21k (Table 6).
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")

ROWS = {
    "224": "ViViT-L/16x2: 80.6 / 94.7 (Table 6), 80.3 (Table 5)",
    "320": "ViViT-L/16x2, crops of 320: 81.3 / 94.7 (Table 6), 81.0 (Table 5)",
    "jft": "ViViT-L/16x2, initialised from JFT: 82.8 / 95.5 (Table 6)",
    "320_jft": "ViViT-L/16x2, crops of 320, initialised from JFT: 83.5 / 95.5 (Table 6)",
}


def get_config(row="224"):
    recipes.check_row(row, ROWS)
    config = recipes.published("kinetics400", "ViViT-L/16x2", "spatiotemporal")
    if row.startswith("320"):
        recipes.set_crop(config, 320)
    return config
