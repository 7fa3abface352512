"""ViViT: A Video Vision Transformer (arXiv:2103.15691) in JAX and Flax.

from vivit_jax.models import ViViT, ViViTConfig
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vivit_jax.utils import extras  # whose clock starts here

if TYPE_CHECKING:
    from vivit_jax.predict import Predictor

__version__ = "0.2.0"

extras.prepare_program()


def load(checkpoint: str | os.PathLike[str], **options: Any) -> Predictor:
    """Loads a model that ranks the labels of video files: `load("runs/mine")("clip.mp4", top=5)`.

    Arguments (`temporal_views`, `spatial_views`, `weights`, `dtype`) and errors are those of
    `vivit_jax.predict.Predictor`.
    """
    from vivit_jax.predict import Predictor

    return Predictor(checkpoint, **options)
