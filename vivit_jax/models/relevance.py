"""What a model looks at: attention rollout, and gradient-weighted relevance of tokens, for Models 1 to 4.

Both multiply matrices [N, N] of an encoder's layers; here only a row r of the product, which says how much the model's
output rests on each token, is followed from the head back to the tokenizer.

* Attention layer: r <- (r + r A) / 2 with A the mean of the attention weights over the heads (`rollout`, Abnar and
  Zuidema, arXiv:2005.00928, section 3). Or r <- r + r A with A the mean over the heads of the positive part of weight x
  gradient (`gradient`, Chefer et al., arXiv:2103.15679, eqs. 5 and 6); the gradient is that of the class's logit.
* Models 3 and 4: the same, A being 0 between tokens that do not attend to each other. Model 3 has two such layers in a
  block; half of Model 4's heads have weights in time, half in space.
* Pooling is attention without a residual: its weights are 1 for the class token, or 1 / N for the mean. Of weight x
  gradient, which for the mean is token . d logit / d token, the positive part is divided by its sum.
* Model 2 has three such matrices in a row: temporal encoder, pooling of each frame, spatial encoder.
* A class token's own entry is left out in the end, as in the papers. With a mean, `gradient` leaves out the identity in
  the last matrix, that is what no attention carried: it would be most of r, and say that tokens matter to themselves.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vivit_jax.models.attention_backends import attention_weights
from vivit_jax.models.blocks import attention_layers
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.vivit import ViViT

METHODS = ("gradient", "rollout")


def relevance(
    config: ViViTConfig, params: Any, video: jax.Array, classes: Any = None, method: str = "gradient"
) -> jax.Array:
    """Returns how much the logits of some classes rest on each token: float32 [B, n_t, n_h, n_w], 0 or more.

    `video` has clips [B, T, H, W, C] in [-1, 1]; `classes` ids, int [B], or {head: [B]} where there are several heads,
    whose logits are added (None: the classes with the largest logits). `rollout` is the same for all classes. No more
    than one layer's activations and one head's weights are in memory, beside queries, keys and values.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; choose one of {', '.join(METHODS)}")
    rollout, token = method == "rollout", int(config.classifier == "token")
    config = dataclasses.replace(config, remat="full", remat_temporal=None)
    apply = functools.partial(ViViT(config).apply, video=video, sow_attention=True)

    def logit(perturbations: Any) -> tuple[jax.Array, Any]:
        logits, state = apply({"params": params, "perturbations": perturbations}, mutable=["relevance"])
        logits = jax.tree.leaves(logits)
        ids = [x.argmax(-1) for x in logits] if classes is None else jax.tree.leaves(classes)
        chosen = [jnp.take_along_axis(x, jnp.asarray(i)[:, None], axis=-1) for x, i in zip(logits, ids, strict=True)]
        return sum(x.sum() for x in chosen), state["relevance"]

    zeros = apply({"params": params}, mutable=["perturbations"])[1]["perturbations"]
    gradients, sown = jax.grad(logit, has_aux=True)(zeros)

    def attended(r: jax.Array, axis: int, qkv: Any, gradient: jax.Array) -> jax.Array:
        """Returns the sum of r A over some heads: [..., N], or with axis -3 [..., n_t, n_s], to the same shape."""

        def one_head(arrays: Any) -> jax.Array:
            q, k, v, out = arrays  # [..., N, head_dim]
            weights = attention_weights(q, k, config.attention_logit_cap)  # [..., N, N]
            if not rollout:
                weights *= jnp.maximum(jnp.matmul(out, v.swapaxes(-1, -2), preferred_element_type=weights.dtype), 0)
            return jnp.einsum("...q,...qk->...k", r, weights)

        r = r if axis == -2 else r.swapaxes(-1, -2)
        result = jax.lax.map(one_head, tuple(jnp.moveaxis(x, -3, 0) for x in (*qkv, gradient))).sum(0)
        return result if axis == -2 else result.swapaxes(-1, -2)

    def through(encoder: str, r: jax.Array, own: bool) -> jax.Array:
        """Returns r R of an encoder; without `own` r (R - 1), which `rollout` does not tell apart."""
        constant, start = (0, r) if rollout else (r, jnp.zeros_like(r))  # apart, as r R - r would cancel

        def block(carry: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            arrays, layer_gradients = layer
            for axes, name, _ in reversed(attention_layers(config)):
                parts = [(axis, arrays[name][f"qkv{axis}"], layer_gradients[name][f"out{axis}"]) for axis in axes]
                received = sum(attended(constant + carry, *part) for part in parts) / config.num_heads
                carry = (carry + received) / 2 if rollout else carry + received
            return carry, None

        carry, _ = jax.lax.scan(block, start, (sown[encoder]["layers"], gradients[encoder]["layers"]), reverse=True)
        return constant + carry if own else carry

    def pooled(products: jax.Array, axes: Any = -1, of_token: int = token) -> jax.Array:
        """Returns the weights of pooling over `axes`, summing to 1; of a mean from token . gradient, [B, ..., N]."""
        if of_token:
            return jnp.zeros_like(products).at[..., 0].set(1)
        positive = jnp.ones_like(products) if rollout else jnp.maximum(products, 0)
        positive = jnp.where((positive > 0).any(axes, keepdims=True), positive, 1)  # equal where none speaks for it
        return positive / positive.sum(axes, keepdims=True)

    products = {name: (sown[name]["tokens"] * gradients[name]["tokens"]).sum(-1) for name in sown}
    if config.attention == "spatiotemporal":
        r = through("encoder", pooled(products["encoder"]), own=False)  # [B, token + N]
    elif config.attention != "factorised_encoder":  # Models 3 and 4
        r = through("encoder", pooled(products["encoder"], (-2, -1)), own=False)  # [B, n_t, n_s]
    else:
        spatial, temporal = "spatial_encoder", "temporal_encoder"
        if config.temporal_layers:
            r = through(temporal, pooled(products[temporal]), own=True)[:, token:]  # [B, n_t]
        else:
            r = pooled(products[spatial].sum(-1), of_token=0)  # token . gradient of each frame
        r = r[..., None] * pooled(products[spatial])  # [B, n_t, token + n_s]
        r = through(spatial, r, own=False)
    return r[..., token:].reshape(-1, *config.grid).astype(jnp.float32)
