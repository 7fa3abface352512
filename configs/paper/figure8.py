"""Figure 8, temporal tokens: tubelets of 2, 4, 8 and 16 frames, for every model (ViViT-B, 32 frames, Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/figure8.py:model2_t4 --workdir=gs://BUCKET/figure8_model2_t4 \\
        --config.init_from.path=VIT_B_16
    python -m vivit_jax.cost --only=figure8

Initialised from a ViT-B/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: a figure, whose values are not recorded here; tubelets of 2 frames are Table 2's rows. The paper leaves open,
and this config chooses: the lengths, 2 to 16 frames (16, 8, 4 and 2 temporal tokens), and the backbone, Table 2's.
`vivit_jax.cost` prints the cost.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

_NAMES = {
    "model1": "Model 1",
    "model2": "Model 2",
    "model3": "Model 3",
    "model4": "Model 4",
    "average_pool": "Model 2 with average pooling",
}
_TABLE_2 = {"model1": 80.0, "model2": 78.8, "model3": 77.4, "model4": 76.3, "average_pool": 75.8}
_FRAMES = (2, 4, 8, 16)

ROWS = {
    f"{model}_t{t}": f"{name}, {32 // t} temporal tokens" + (f": {_TABLE_2[model]} (Table 2)" if t == 2 else "")
    for model, name in _NAMES.items()
    for t in _FRAMES
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    model, t = row.rsplit("_t", 1)
    return recipes.published("kinetics400", f"ViViT-B/16x{t}", **recipes.MODELS[model])
