"""Options of the initialisation from pretrained weights (section 3.4)."""

from __future__ import annotations

import dataclasses

CHOICES: dict[str, tuple[str | None, ...]] = {
    "embedding": (None, "central_frame", "filter_inflation", "random"),
    "temporal_attention": ("zero", "copy", "random"),
    "temporal_encoder": ("load", "random"),
    "head": ("match", "reinit", "keep"),
    "pre_logits": ("load", "drop"),
}


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Where a model's first weights come from, and how they are fitted to it (section 3.4).

    Attributes:
      path: a checkpoint or weight file in any known format; None: from scratch.
      format: a key of `vivit_jax.convert.FORMATS`; None: found by looking.
      prefix: look only at names in the file that begin so; None: found by looking.
      grid: (n_t, n_h, n_w) of the model in the file, for files whose positions can be read in several ways.
      num_heads: attention heads of the model in the file, for files that do not say.
      embedding: the tubelet embedding. `central_frame`: the kernel at frame t // 2, zeros elsewhere (eq. 9).
        `filter_inflation`: spread evenly over the frames (eq. 8; between video models over the frames that each
        new frame covers, so that a still clip gives the same token). `random`: as from scratch. None: central_frame
        from images, filter_inflation between tubelets of different length.
      temporal_attention: that of Model 3, where the weights have none. `zero`: a copy of the spatial attention with its
        output projection at zero, so that a block starts as the image model's and learns. `copy`: a whole copy.
        `random`: as from scratch.
      temporal_encoder: Model 2's, where the weights have one: `load`, or `random`, as from scratch.
      head: the classifier of each head. `match`: loaded where the file and the data set have the same class names, in
        the data set's order; otherwise it starts at zero. `reinit`: starts at zero. `keep`: loaded; an error where the
        classes differ, in their names or, where the file has none, in their number.
      pre_logits: the dense layer before the head: `load` it from the file, or `drop` it.
      pixel_mean, pixel_std: the weights want (x - mean) / std of pixels x in [0, 1], a number for each channel; folded
        into the embedding exactly, since every model here sees [-1, 1], which is 0.5 and 0.5. None: what the
        `preprocessor_config.json` beside an image model says; 0.5 where there is none.

    Raises:
      ValueError: a choice that does not exist.
    """

    path: str | None = None
    format: str | None = None
    prefix: str | None = None
    grid: tuple[int, ...] | None = None
    num_heads: int | None = None
    embedding: str | None = None
    temporal_attention: str = "zero"
    temporal_encoder: str = "load"
    head: str = "match"
    pre_logits: str = "load"
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                options = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"init_from.{field}={getattr(self, field)!r} is not known; choose one of {options}")
        if self.grid is not None:
            grid = tuple(self.grid)
            if len(grid) not in (2, 3) or any(not isinstance(n, int) or n < 1 for n in grid):
                raise ValueError(
                    f"init_from.grid={self.grid} must be the positive (n_t, n_h, n_w) of the weights' tokens"
                )
            object.__setattr__(self, "grid", grid)
        for field in ("pixel_mean", "pixel_std"):
            numbers = getattr(self, field)
            if numbers is None:
                continue
            if not isinstance(numbers, tuple | list) or any(field == "pixel_std" and not x > 0 for x in numbers):
                raise ValueError(f"init_from.{field}={numbers} must be a number for each channel, the std above 0")
            object.__setattr__(self, field, tuple(float(x) for x in numbers))
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("init_from.pixel_mean and init_from.pixel_std go together: give both or neither")
        if self.num_heads is not None and self.num_heads < 1:
            raise ValueError(f"init_from.num_heads={self.num_heads} must be at least 1")
