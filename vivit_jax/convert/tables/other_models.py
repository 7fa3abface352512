"""Models that are not ViViT or ViT, by a name that only they have; they are refused by name."""

import re
from collections.abc import Mapping
from typing import Any

# Pattern -> the model, and what of it ViViT does not have. The first that matches counts.
_MODELS = {
    r"temporal_att(n|ention)\.|time_embed(dings)?$": "TimeSformer: attention divided in time and space in each block",
    r"predictor(_blocks|_embed|\.embeddings)\.|embeddings\.patch_embeddings\.proj\.": "V-JEPA, I-JEPA: no class token",
    r"layers\.\d+\.blocks\.\d+\.|encoder\.layers\.\d+\.blocks\.\d+\.": "Swin: attention in shifted windows",
    r"attn\.pool_[qkv]|attn\.rel_pos_[hwt]|attn\.rel_pos\.": "MViT or another model with relative positions",
    r"blocks\.\d+\.(attn\.q_proj|mlp\.(w12|w1|fc1_g|norm))\.": "EVA or DINOv2-g: gated MLPs (SwiGLU)",
    r"embeddings\.patch_embeddings\.(weight|bias)$": "DINOv3: rotary positions",
    r"relative_position_bias|lambda_1$|gamma_1$": "BEiT or DINOv3: scaled branches with relative or rotary positions",
    r"attn\.q_bias$": "VideoMAE by its authors' names (those of Hugging Face are read), EVA or BEiT: no bias on keys",
    r"dist(illation)?_token$|head_dist\.|distillation_classifier\.": "DeiT, distilled: a second token and classifier",
    r"reg(ister)?_tokens?$": "DINOv2 with registers or another ViT with register tokens, which every layer attends to",
    r"layer_scale[12]\.lambda1$": "DINOv2, scaled branches; it is read under timm's names (vit_base_patch14_dinov2)",
    r"class_embedding$|pre_layrnorm\.|visual\.conv1\.|ln_pre\.|norm_pre\.": "CLIP: a LayerNorm before the first block",
    r"embeddings\.patch_embedding\.(weight|bias)$|head\.probe$": "SigLIP: attention that pools its tokens",
    r"encoder\.layers\.encoder_layer_\d+\.": "torchvision's ViT: save the same model from timm",
    r"attn\.[qk]_norm\.": "a ViT with normalised queries and keys",
    r"(^|[./])(layer1\.0\.conv1|layer1\.0\.conv\d|s1\.pathway0|res2\.|Conv3d_1a)": "a convolutional network",
}


def name_of(leaves: Mapping[str, Any]) -> str | None:
    """Returns which other model the leaves are of, and why ViViT cannot have its weights; None for none known."""
    for pattern, model in _MODELS.items():
        if name := next((name for name in leaves if re.search(pattern, name)), None):
            return f"{model} ({name})"
    return None
