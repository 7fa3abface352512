"""ViViT: A Video Vision Transformer (arXiv:2103.15691) in JAX and Flax.

from vivit_jax.models import ViViT, ViViTConfig
"""

from typing import TYPE_CHECKING, Any

from vivit_jax.utils import extras  # whose clock starts here

if TYPE_CHECKING:
    from vivit_jax.predict import Predictor as load

__all__ = ["load"]
__version__ = "0.2.0"

extras.prepare_program()


def __getattr__(name: str) -> Any:
    """Returns `load`, the class `vivit_jax.predict.Predictor`, which is imported when it is first used."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vivit_jax.predict import Predictor

    return Predictor
