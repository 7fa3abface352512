"""Table 3, temporal layers of Model 2: L_t = 0, 1, 4, 8, 12 (ViViT-B, Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/table3.py:layers8 --workdir=gs://BUCKET/table3_layers8 \\
        --config.init_from.path=VIT_B_16

Initialised from a ViT-B/16 trained on ImageNet-21k; the temporal encoder is initialised at random.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: top-1 75.8, 78.6, 78.8, 78.8, 78.9. Without temporal layers it is the average-pool baseline of Table 2.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

_PUBLISHED = {0: 75.8, 1: 78.6, 4: 78.8, 8: 78.8, 12: 78.9}

ROWS = {f"layers{layers}": f"L_t = {layers}: {top1}" for layers, top1 in _PUBLISHED.items()}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    config = recipes.published("kinetics400", "ViViT-B/16x2", "factorised_encoder")
    config.model.temporal_layers = int(row.removeprefix("layers"))
    return config
