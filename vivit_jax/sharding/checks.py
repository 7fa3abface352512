"""Whether a model fits a mesh, said before anything compiles."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh


def check_model(mesh: Mesh, config: Any) -> None:
    """Raises ValueError, with what would fit, where the mesh would split a dimension of the model unevenly.

    Plain arithmetic on the mesh's sizes and the config's fields. One dimension may be uneven by nature, the tokens of
    Model 1 with their class token: they are padded, by less than one token a device.

    Args:
      mesh: from `make_mesh`.
      config: a `ViViTConfig`, or what has its `attention`, `hidden_size`, `num_heads`, `mlp_dim` and `grid`.
    """
    attention = config.attention
    n_t, n_h, n_w = config.grid
    _divides(mesh, "fsdp", "hidden_size", config.hidden_size)
    if attention == "factorised_dot_product":
        _divides(mesh, "tensor", "half of num_heads (Model 4 gives each half to one axis)", config.num_heads // 2)
    else:
        _divides(mesh, "tensor", "num_heads", config.num_heads)
    _divides(mesh, "tensor", "mlp_dim", config.mlp_dim)
    if attention == "spatiotemporal":
        _divides(mesh, "sequence", "n_t n_h n_w, the tokens of a clip", n_t * n_h * n_w)
        return
    _divides(mesh, "sequence", "n_t, the frames of the token grid (num_frames over the tubelet's)", n_t)
    over_time = attention != "factorised_encoder" or not config.frame_pooling
    if over_time and n_h * n_w < mesh.shape["sequence"]:
        raise ValueError(
            f"mesh.sequence={mesh.shape['sequence']} is more than the {n_h} x {n_w} places of a frame, which attention "
            f"over time is split by; use at most {n_h * n_w}, and the other devices for data or fsdp"
        )


def _divides(mesh: Mesh, axis: str, name: str, size: int) -> None:
    ways = mesh.shape[axis]
    if size % ways:
        fits = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
        raise ValueError(
            f"mesh.{axis}={ways} does not divide {name}, {size}; on {mesh.size} devices mesh.{axis} can be "
            f"{', '.join(map(str, fits))}, with the others for data"
        )
