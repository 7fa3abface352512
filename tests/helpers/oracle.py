"""ViViT in plain float64 NumPy, from the paper's equations; shares no code with the package.

Attention is implemented once, from every token to a set of visible tokens (a boolean matrix per head): all tokens in
Model 1, those with the same temporal or spatial index in Models 3 and 4.
"""

import math

import numpy as np


def layer_norm(x, p, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def gelu(x, kind):
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def unchanged(weights):
    """Is given all weights with which tokens are averaged, in order ([N, N] of each head, [N] of a pooling), and
    returns those to use."""
    return weights


def attention(x, p, visible, cap=None, change=unchanged):
    """Multi-head self-attention of one sequence: x [N, d], visible: one boolean [N, N] per head -> [N, d]."""
    out = np.array(p["out"]["bias"], copy=True)
    for head, mask in enumerate(visible):
        q, k, v = (
            x @ p[name]["kernel"][:, head] + (p[name]["bias"][head] if "bias" in p[name] else 0.0)
            for name in ("query", "key", "value")
        )
        weights = np.zeros((len(x), len(x)))
        for i in range(len(x)):
            seen = np.flatnonzero(mask[i])
            logits = k[seen] @ q[i] / math.sqrt(q.shape[-1])
            logits = logits if cap is None else cap * np.tanh(logits / cap)
            row = np.exp(logits - logits.max())
            weights[i, seen] = row / row.sum()
        out = out + change(weights) @ v @ p["out"]["kernel"][head]
    return out


def mlp(x, p, kind):
    hidden = gelu(x @ p["dense_in"]["kernel"] + p["dense_in"]["bias"], kind)
    return hidden @ p["dense_out"]["kernel"] + p["dense_out"]["bias"]


def neighbours(n_t, n_s):
    """(over time, over space): pairs of tokens with the same spatial and with the same temporal index, bool [N, N]."""
    time, space = np.divmod(np.arange(n_t * n_s), n_s)
    return space[:, None] == space[None], time[:, None] == time[None]


def encoder(x, p, config, layers, grid=None, change=unchanged):
    """Applies one encoder to one sequence x [N, d]; `grid` is (n_t, n_s) for Models 3 and 4."""
    if "class_token" in p:
        x = np.concatenate([p["class_token"][None], x])
    x = x + p["position_embedding"]
    all_tokens = np.ones((len(x), len(x)), bool)
    heads, eps, cap = config.num_heads, config.layer_norm_eps, config.attention_logit_cap
    for i in range(layers):
        block = take(p["layers"], i)
        if config.attention == "factorised_self_attention":
            over_time, over_space = neighbours(*grid)
            steps = [("time", over_time), ("space", over_space)]
            for axis, mask in steps if config.attention_order == "time_space" else steps[::-1]:
                y = layer_norm(x, block[f"norm_{axis}"], eps)
                x = x + attention(y, block[f"attention_{axis}"], [mask] * heads, cap, change)
        else:
            masks = [all_tokens] * heads
            if config.attention == "factorised_dot_product":
                over_time, over_space = neighbours(*grid)
                masks = [over_time] * (heads // 2) + [over_space] * (heads // 2)
            x = x + attention(layer_norm(x, block["norm_attention"], eps), block["attention"], masks, cap, change)
        x = x + mlp(layer_norm(x, block["norm_mlp"], eps), block["mlp"], config.activation)
    return layer_norm(x, p["norm"], eps)


def take(tree, i):
    return {k: take(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def tokens(clip, p, config):
    """Embeds one clip [T, H, W, C] as [n_t, n_h n_w, d], tubelet by tubelet."""
    (n_t, n_h, n_w), (t, h, w) = config.grid, config.tubelet_size
    frames = None
    if config.tokenizer == "uniform_frames":
        step = config.num_frames / (n_t + 1)
        frames = range(n_t) if n_t == config.num_frames else [round((i + 1) * step) for i in range(n_t)]
    out = np.zeros((n_t, n_h * n_w, config.hidden_size))
    for a in range(n_t):
        for b in range(n_h):
            for c in range(n_w):
                tubelet = clip[a * t : (a + 1) * t] if frames is None else clip[frames[a]]
                tubelet = tubelet[..., b * h : (b + 1) * h, c * w : (c + 1) * w, :]
                out[a, b * n_w + c] = np.tensordot(tubelet, p["kernel"], tubelet.ndim) + p["bias"]
    return out


def pool(x, p, change=unchanged):
    weights = np.eye(len(x))[0] if "class_token" in p else np.full(len(x), 1 / len(x))
    return change(weights) @ x


def logits(video, p, config, change=unchanged):
    """Maps [B, T, H, W, C] to logits, as the model returns them."""
    rows = []
    for clip in video:
        x = tokens(clip, p["tokenizer"], config)
        if config.attention == "factorised_encoder":
            space = p["spatial_encoder"]
            x = np.stack([encoder(frame, space, config, config.num_layers, change=change) for frame in x])
            x = np.stack([pool(frame, space, change) for frame in x])
            time = p.get("temporal_encoder", {})
            if config.temporal_layers:
                x = encoder(x, time, config, config.temporal_layers, change=change)
            x = pool(x, time, change)
        else:
            grid, x = x.shape[:2], x.reshape(-1, x.shape[-1])
            x = pool(encoder(x, p["encoder"], config, config.num_layers, grid, change), p["encoder"], change)
        if "pre_logits" in p:
            x = np.tanh(x @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
        rows.append({k: x @ head["kernel"] + head["bias"] for k, head in p.items() if k.startswith("head")})
    out = {k.removeprefix("head_"): np.stack([row[k] for row in rows]) for k in rows[0]}
    return out["head"] if set(out) == {"head"} else out
