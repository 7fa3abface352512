"""Parameter names of other implementations, as data: one table a format."""

from vivit_jax.convert.tables import huggingface, native, scenic, timm, videomae, vit_npz
from vivit_jax.convert.tables.rows import Format, Hints

# By name, in the order of auto-detection.
FORMATS: dict[str, Format] = {
    "orbax": native.FORMAT,
    "vit_npz": vit_npz.FORMAT,
    "scenic": scenic.FORMAT,
    "videomae": videomae.FORMAT,
    "huggingface": huggingface.FORMAT,
    "timm": timm.FORMAT,
}
