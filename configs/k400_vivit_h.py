"""ViViT-H, Model 1, on Kinetics-400, initialised from JFT (Table 6).

    python -m vivit_jax.main --config=configs/k400_vivit_h.py --workdir=gs://BUCKET/k400_vivit_h \\
        --config.init_from.path=VIT_H
    python -m vivit_jax.main --config=configs/k400_vivit_h.py:14x2 --workdir=gs://BUCKET/k400_vivit_h_14 \\
        --config.init_from.path=VIT_H_14

Initialised from a ViT-H trained on JFT. The paper writes ViViT-H/16x2, but the published ViT-H checkpoints have patches
of 14 x 14 pixels: use the row 14x2 for them (16 x 16 patches per frame instead of 14 x 14).
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu.md); the paper used TPU v3.
Published: 84.8 / 95.8 top-1 / top-5 with 4 x 3 views (Table 6).
"""

from vivit_jax.config import recipes

SLICES = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-16", "v5e-256", "v5p-8", "v6e-8")

ROWS = {
    "16x2": "ViViT-H/16x2, as the paper writes, initialised from JFT: 84.8 / 95.8 (Table 6)",
    "14x2": "ViViT-H/14x2, for ViT-H/14: not in the paper under this name",
}


def get_config(row="16x2"):
    recipes.check_row(row, ROWS)
    return recipes.published("kinetics400", f"ViViT-H/{row}", "spatiotemporal")
