"""Table 5, resolution: crops of 224, 288 and 320 pixels (ViViT-L/16x2, Model 1, Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/table5.py:crop288 --workdir=gs://BUCKET/table5_crop288 \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.cost --only=table5

Initialised from a ViT-L/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: top-1, multiply-adds and milliseconds on TPU v3 beside each row. The paper does not say how frames are
resized for larger crops: here in proportion (short sides 256, 329, 366). `vivit_jax.cost` prints the multiply-adds.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "crop224": "80.3 (1446 G, 58.9 ms)",
    "crop288": "80.7 (2919 G, 147.6 ms)",
    "crop320": "81.0 (3992 G, 238.8 ms)",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    config = recipes.published("kinetics400", "ViViT-L/16x2", "spatiotemporal")
    recipes.set_crop(config, int(row.removeprefix("crop")))
    return config
