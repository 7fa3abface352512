"""ViViT: A Video Vision Transformer (arXiv:2103.15691) in JAX and Flax.

from vivit_jax.models import ViViT, ViViTConfig
"""

from vivit_jax.utils import extras, startup  # whose clock starts here

__version__ = "0.2.0"

extras.prepare_program()
