"""Multiply-adds of the forward pass in closed form."""

from vivit_jax.models import ViViTConfig

PARTS = ("tokenizer", "projections", "attention", "mlp", "head")


def matrix_products(config: ViViTConfig) -> dict[str, int]:
    """Returns the multiply-adds of all matrix products in the forward pass of one clip.

    With S tokens in an encoder, each layer takes 4 d^2 S for the projections of eq. 2 (query, key, value, out), 2 n d S
    for attention to n keys per query (eq. 7: Q K^T, then times V) and 2 d d_mlp S for the MLP of eq. 3. By section 3.3:

    * Model 1: S = n = n_t n_h n_w + 1.
    * Model 2: n_t sequences with S = n = n_h n_w + 1, then one with S = n = n_t + 1.
    * Model 3: two attentions per layer, with n = n_h n_w and n = n_t.
    * Model 4: one attention, half of its width with each n of Model 3.

    (+ 1 is the class token, if there is one.) The result has a key for each of `PARTS`; `head` includes `pre_logits`.
    """
    (n_t, n_h, n_w), (t, h, w), d = config.grid, config.tubelet_size, config.hidden_size
    n_s, token = n_h * n_w, int(config.classifier == "token")
    frames = 1 if config.tokenizer == "uniform_frames" else t
    parts = dict.fromkeys(PARTS, 0)
    parts["tokenizer"] = n_t * n_s * (frames * h * w * config.in_channels) * d

    def add_encoder(layers: int, tokens: int, attended: int, attentions: int = 1) -> None:
        """`attended`: 2 n, summed over the attentions of a layer."""
        parts["projections"] += layers * attentions * 4 * tokens * d * d
        parts["attention"] += layers * attended * tokens * d
        parts["mlp"] += layers * 2 * tokens * d * config.mlp_dim

    if config.attention == "spatiotemporal":
        length = n_t * n_s + token
        add_encoder(config.num_layers, length, 2 * length)
    elif config.attention == "factorised_encoder":
        add_encoder(config.num_layers, n_t * (n_s + token), 2 * (n_s + token))
        add_encoder(config.temporal_layers, n_t + token, 2 * (n_t + token))
    elif config.attention == "factorised_self_attention":
        add_encoder(config.num_layers, n_t * n_s, 2 * (n_s + n_t), attentions=2)
    else:
        add_encoder(config.num_layers, n_t * n_s, n_s + n_t)

    width = config.representation_size or d
    parts["head"] = d * (config.representation_size or 0) + width * sum(classes for _, classes in config.heads)
    return parts
