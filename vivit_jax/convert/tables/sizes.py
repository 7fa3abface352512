"""What the shapes in a weight file say about its model: grids of tokens, heads, layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vivit_jax.convert.tables.rows import Hints, Shapes
from vivit_jax.models import ViViTConfig
from vivit_jax.models.config import BACKBONES

PUBLISHED_FRAMES = 32
PUBLISHED_SIZES = (224, 256, 288, 320)  # the crops of the paper: tables 5 and 6, Something-Something v2


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape under a name.

    Raises:
      ValueError: there is none, or it has another number of axes.
    """
    if name not in shapes:
        raise ValueError(f"the weights have no {name!r}, without which their model cannot be known")
    if len(shapes[name]) != rank:
        raise ValueError(f"{name!r} has shape {shapes[name]}; {rank} axes were expected")
    return tuple(shapes[name])


def count_layers(shapes: Shapes, pattern: str) -> int:
    """How many numbers the group `layer` of a pattern takes among the names.

    Raises:
      ValueError: none.
    """
    found = {match["layer"] for name in shapes if (match := re.match(pattern, name))}
    if not found:
        raise ValueError(f"the weights have no layers (no name like {pattern!r})")
    return len(found)


def heads_of(hidden_size: int, hints: Hints) -> int:
    """Attention heads where the shapes do not tell: by a hint, the wanted model, or the backbones' table.

    Raises:
      ValueError: none of these knows.
    """
    if hints.num_heads is not None:
        return hints.num_heads
    if hints.target is not None and hints.target.hidden_size == hidden_size:
        return hints.target.num_heads
    known = {row["hidden_size"]: row["num_heads"] for row in BACKBONES.values()}
    if hidden_size not in known:
        raise ValueError(
            f"the weights do not say how many attention heads their {hidden_size} channels are split into: "
            "give num_heads (config.init_from.num_heads, or --num_heads)"
        )
    return known[hidden_size]


def space_grid(tokens: int, hints: Hints) -> tuple[int, int]:
    """(n_h, n_w) of an image's tokens: by a hint, the wanted model's if they are as many, or a square.

    Args:
      tokens: n_h n_w, the class token not counted.
      hints: `grid` holds (n_h, n_w) or (n_t, n_h, n_w).

    Raises:
      ValueError: the hint does not fit, or the tokens are not a square.
    """
    if hints.grid is not None:
        grid = tuple(hints.grid[-2:])
        if math.prod(grid) != tokens:
            raise ValueError(f"grid={hints.grid}: {grid[0]} x {grid[1]} is not the {tokens} positions of the weights")
        return grid
    if hints.target is not None and math.prod(hints.target.grid[1:]) == tokens:
        return hints.target.grid[1:]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{tokens} positions are not a square: give grid=(rows, columns) (config.init_from.grid, or --grid)"
        )
    return side, side


def clip_grid(tokens: int, tubelet: Sequence[int], hints: Hints) -> tuple[int, int, int]:
    """(n_t, n_h, n_w) of a clip's tokens, which their number alone does not tell.

    In this order: a hint; the wanted model's grid if it has as many tokens; the grid of the published clips (32 frames,
    a square crop of 224, 256, 288 or 320 pixels) if it has; the wanted model's rows and columns, or its number of
    frames, if only one of these readings exists.

    Args:
      tokens: n_t n_h n_w, the class token not counted.
      tubelet: (t, h, w) of the embedding.
      hints: `grid` holds (n_t, n_h, n_w).

    Raises:
      ValueError: the hint does not fit, or several readings or none are left.
    """
    t, h, w = tubelet
    if hints.grid is not None:
        if len(hints.grid) != 3 or math.prod(hints.grid) != tokens:
            raise ValueError(f"grid={hints.grid} must be (n_t, n_h, n_w) with the product {tokens}, the positions")
        return tuple(hints.grid)
    wanted = hints.target.grid if hints.target is not None else None
    if wanted is not None and math.prod(wanted) == tokens:
        return wanted
    for size in PUBLISHED_SIZES:
        if PUBLISHED_FRAMES // t * (size // h) * (size // w) == tokens:
            return PUBLISHED_FRAMES // t, size // h, size // w
    readings = set()
    if wanted is not None:
        frames, rows, columns = wanted
        if tokens % (rows * columns) == 0:
            readings.add((tokens // (rows * columns), rows, columns))
        side = math.isqrt(tokens // frames)
        if side * side * frames == tokens:
            readings.add((frames, side, side))
    if len(readings) != 1:
        many = f"can be {' or '.join(map(str, sorted(readings)))}" if readings else "can be many grids"
        raise ValueError(
            f"the {tokens} positions of the weights {many}: give grid=(n_t, n_h, n_w) "
            "(config.init_from.grid, or --grid)"
        )
    return readings.pop()


def image_config(grid: tuple[int, int], patch: tuple[int, int], **fields: Any) -> ViViTConfig:
    """The config of an image ViT: Model 1 of one frame.

    Args:
      grid: (n_h, n_w), patches.
      patch: (h, w), pixels of one.
      **fields: the others.
    """
    size = (grid[0] * patch[0], grid[1] * patch[1])
    return ViViTConfig(tokenizer="uniform_frames", tubelet_size=(1, *patch), num_frames=1, image_size=size, **fields)


def is_image_model(config: ViViTConfig) -> bool:
    """Whether a config is an image ViT: Model 1 of one frame, its embedding 2-D or a tubelet of one frame."""
    return (
        config.attention == "spatiotemporal"
        and config.num_frames == 1
        and config.tubelet_size[0] == 1
        and not isinstance(config.num_classes, tuple)
    )


def require_image_model(config: ViViTConfig, what: str) -> None:
    """Raises ValueError, with the way out, unless the config is an image ViT's."""
    if not is_image_model(config):
        raise ValueError(
            f"{what} is an image model, {config.name} ({config.attention}, {config.num_frames} frames) a video model: "
            "start it from the image model as section 3.4 says, by config.init_from, convert.initialise or "
            "convert.image_to_video; load_params takes the weights of the very model"
        )
