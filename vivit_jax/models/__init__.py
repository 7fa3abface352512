"""The models of the paper (section 3) in Flax Linen: `ViViT(ViViTConfig.from_name("ViViT-B/16x2", attention=...))`."""

from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.masked import MaskedViViT, PretrainConfig
from vivit_jax.models.vivit import ViViT, abstract_params, count_parameters
