"""Reads the sizes of a model off the shapes of its weights: grids of tokens, heads, layers."""

import math
import re
from collections.abc import Sequence
from typing import Any

from vivit_jax.convert.tables.rows import Hints, Shapes
from vivit_jax.models import ViViTConfig
from vivit_jax.models.config import BACKBONES

PUBLISHED_FRAMES, PUBLISHED_SIZES = 32, (224, 256, 288, 320)  # tables 5 and 6; Something-Something v2


def shape_of(shapes: Shapes, name: str, *ranks: int) -> tuple[int, ...]:
    """Returns the shape of a leaf; ValueError where it is missing or has another number of axes."""
    if name not in shapes:
        raise ValueError(f"the weights have no {name!r}, without which their model cannot be determined")
    if len(shapes[name]) not in ranks:
        raise ValueError(f"{name!r} has shape {shapes[name]}; {' or '.join(map(str, ranks))} axes were expected")
    return tuple(shapes[name])


def count_layers(shapes: Shapes, pattern: str, stated: int | None = None) -> int:
    """Counts the values of the group `layer` of a pattern among the names.

    Raises ValueError where there is none, or another number than the one `stated` in `config.json`.
    """
    layers = {match["layer"] for name in shapes if (match := re.match(pattern, name))}
    if not layers:
        raise ValueError(f"the weights have no layers (no name like {pattern!r})")
    if stated not in (None, len(layers)):
        raise ValueError(f"config.json says num_hidden_layers={stated}, but the weights have {len(layers)}")
    return len(layers)


def heads_of(hidden_size: int, hints: Hints) -> int:
    """Returns the attention heads of a model whose shapes do not show them: by a hint, the target, or the backbones."""
    if hints.num_heads is not None:
        return hints.num_heads
    if hints.target is not None and hints.target.hidden_size == hidden_size:
        return hints.target.num_heads
    published = {row["hidden_size"]: row["num_heads"] for row in BACKBONES.values()}
    if hidden_size not in published:
        raise ValueError("the weights do not show their heads: give num_heads (init_from.num_heads, --num_heads)")
    return published[hidden_size]


def space_grid(tokens: int, hints: Hints) -> tuple[int, int]:
    """Returns (n_h, n_w) for n_h n_w tokens, without class token: by a hint, the target's if it fits, or a square."""
    if hints.grid is not None:
        grid = tuple(hints.grid[-2:])
        if math.prod(grid) != tokens:
            raise ValueError(f"grid={hints.grid}: {grid[0]} x {grid[1]} is not the {tokens} positions of the weights")
        return grid
    if hints.target is not None and math.prod(hints.target.grid[1:]) == tokens:
        return hints.target.grid[1:]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} positions are not a square: give grid=(rows, columns), init_from.grid or --grid")
    return side, side


def clip_grid(tokens: int, tubelet: Sequence[int], hints: Hints) -> tuple[int, int, int]:
    """Returns (n_t, n_h, n_w) for n_t n_h n_w tokens, without class token; `tubelet` is (t, h, w).

    In this order: a hint; the target's grid if it has as many tokens; the grid of the published clips if it has; the
    target's rows and columns, or its frames with a square, if only one of these readings exists.
    """
    t, h, w = tubelet
    if hints.grid is not None:
        if len(hints.grid) != 3 or math.prod(hints.grid) != tokens:
            raise ValueError(f"grid={hints.grid} must be (n_t, n_h, n_w) with the product {tokens}, the positions")
        return tuple(hints.grid)
    target = hints.target.grid if hints.target is not None else None
    if target is not None and math.prod(target) == tokens:
        return target
    for size in PUBLISHED_SIZES:
        if PUBLISHED_FRAMES // t * (size // h) * (size // w) == tokens:
            return PUBLISHED_FRAMES // t, size // h, size // w
    readings = set()
    if target is not None:
        frames, rows, columns = target
        side = math.isqrt(tokens // frames)
        candidates = {(tokens // (rows * columns), rows, columns), (frames, side, side)}
        readings = {grid for grid in candidates if math.prod(grid) == tokens}
    if len(readings) != 1:
        grids = " or ".join(map(str, sorted(readings))) if readings else "many grids"
        way_out = "give grid=(n_t, n_h, n_w), config.init_from.grid or --grid"
        raise ValueError(f"the {tokens} positions of the weights can be {grids}: {way_out}")
    return readings.pop()


def image_config(grid: tuple[int, int], patch: tuple[int, int], **fields: Any) -> ViViTConfig:
    """Returns the config of an image ViT, Model 1 of one frame, from (n_h, n_w) patches of (h, w) pixels."""
    size = (grid[0] * patch[0], grid[1] * patch[1])
    return ViViTConfig(tokenizer="uniform_frames", tubelet_size=(1, *patch), num_frames=1, image_size=size, **fields)


def is_image_model(config: ViViTConfig) -> bool:
    """Whether a config is an image ViT: Model 1 of one frame, with a 2-D embedding or tubelets of one frame."""
    is_frame = config.num_frames == config.tubelet_size[0] == 1
    return is_frame and config.attention == "spatiotemporal" and not isinstance(config.num_classes, tuple)


def check_image_model(config: ViViTConfig, what: str) -> None:
    if not is_image_model(config):
        video = f"{config.name} ({config.attention}, {config.num_frames} frames) a video model"
        way_out = "initialise it from the image model by config.init_from or convert.initialise (section 3.4)"
        raise ValueError(f"{what} is an image model, {video}: {way_out}")
