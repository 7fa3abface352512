"""ViViT: A Video Vision Transformer (arXiv:2103.15691) in JAX and Flax.

from vivit_jax.models import ViViT, ViViTConfig
"""

__version__ = "0.2.0"
