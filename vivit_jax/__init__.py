"""vivit_jax: ViViT, a Video Vision Transformer (arXiv:2103.15691), in JAX/Flax."""
