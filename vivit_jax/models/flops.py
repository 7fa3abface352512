"""Multiply-adds of a model's matrix products in closed form."""

from __future__ import annotations

from vivit_jax.models import ViViTConfig

PARTS = ("tokenizer", "projections", "attention", "mlp", "head")


def matrix_products(config: ViViTConfig) -> dict[str, int]:
    """The multiply-adds of all matrix products in the forward pass of one clip, in closed form.

    With S tokens in an encoder, each layer multiplies 4 d^2 S in the projections of eq. 2 (query, key, value, out),
    2 n d for each of the S queries that attends to n keys (eq. 7: Q K^T, then times V) and 2 d d_mlp S in the MLP of
    eq. 3. Section 3.3 says what S and n are: Model 1: S = n_t n_h n_w + 1, n = S. Model 2: n_t sequences of
    n_h n_w + 1, then one of n_t + 1. Model 3: two attentions in a layer, n = n_h n_w and n = n_t. Model 4: one, half
    of its width for each. (The + 1 is the class token, where there is one.)

    Args:
      config: the architecture. Dtype, scan, remat and attention backend make no difference.

    Returns:
      Multiply-adds by part, keys `PARTS`: `tokenizer` (section 3.2), `projections`, `attention`, `mlp`, `head` (with
      `pre_logits`). Their sum is that of the program.
    """
    (n_t, n_h, n_w), (t, h, w), d = config.grid, config.tubelet_size, config.hidden_size
    n_s, token = n_h * n_w, int(config.classifier == "token")
    frames = 1 if config.tokenizer == "uniform_frames" else t
    parts = dict.fromkeys(PARTS, 0)
    parts["tokenizer"] = n_t * n_s * (frames * h * w * config.in_channels) * d

    def encoder(layers: int, tokens: int, attended: int, attentions: int = 1) -> None:
        """`attended`: keys that a query meets, summed over the layer's attentions; in Model 4 over halves of d."""
        parts["projections"] += layers * attentions * 4 * tokens * d * d
        parts["attention"] += layers * attended * tokens * d
        parts["mlp"] += layers * 2 * tokens * d * config.mlp_dim

    if config.attention == "spatiotemporal":
        length = n_t * n_s + token
        encoder(config.num_layers, length, 2 * length)
    elif config.attention == "factorised_encoder":
        encoder(config.num_layers, n_t * (n_s + token), 2 * (n_s + token))
        sequences = 1 if config.frame_pooling else n_s
        encoder(config.temporal_layers, sequences * (n_t + token), 2 * (n_t + token))
    elif config.attention == "factorised_self_attention":
        encoder(config.num_layers, n_t * n_s, 2 * (n_s + n_t), attentions=2)
    else:
        encoder(config.num_layers, n_t * n_s, n_s + n_t)

    width = config.representation_size or d
    parts["head"] = d * (config.representation_size or 0) + width * sum(classes for _, classes in config.heads)
    return parts
