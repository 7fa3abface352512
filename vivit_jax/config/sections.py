"""Sections of a config for checkpoints, evaluation, the profiler and pretrained weights (section 3.4)."""

import dataclasses
import re

from vivit_jax.utils.checks import at_least, one_of

EVALUATION_DTYPES = ("auto", "float32", "bfloat16", "model")
REPORT_FILE = "init_report.txt"  # what the initialisation did with every parameter, in the workdir
EMA = "ema/"  # prefix of the metrics of the averaged parameters
IMAGE_MODEL_FOLDER = "image_model"  # in the workdir: the run of `image_epochs`


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved and which are kept. They are also saved after each evaluation and at the end.

    Attributes:
      every_steps: steps between checkpoints.
      keep_latest, keep_best: number of checkpoints to keep.
      best_metric: a metric of the evaluation: `top1`, `action/top1`, `ema/top1`, ... (highest), `loss`, ... (lowest).
      on_full: when the disk is full: `stop`, as several processes always do, or `continue` to the next checkpoint.
    """

    every_steps: int = 1000
    keep_latest: int = 1
    keep_best: int = 1
    best_metric: str = "top1"
    on_full: str = "stop"

    def __post_init__(self) -> None:
        one_of("checkpoint", self, on_full=("stop", "continue"))
        at_least("checkpoint", self, every_steps=1, keep_latest=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The views of multi-view evaluation (section 4.1), and when a run is evaluated.

    Attributes:
      num_videos: videos of the split, always the same, for evaluations during training; None: all. The last uses all.
      patience: early stopping after so many consecutive evaluations without a better `checkpoint.best_metric`; 0: off.
      dtype: of the compute in evaluation, during training too, in prediction and in probes: `auto` (bfloat16 where the
        device computes this model clearly faster in it, which is measured; else float32), `float32`, `bfloat16`, or
        `model`, which is `model.dtype`. See docs/performance.md, "Inference dtype".
    """

    temporal_views: int = 4  # clips evenly spaced over the video, at least 1
    spatial_views: int = 3  # 1 (centre), 2 or 3 crops along the longer side
    every_epochs: float = 1.0  # epochs between evaluations; 0: only at the end
    every_steps: int | None = None  # steps between evaluations; replaces `every_epochs`
    num_videos: int | None = None
    patience: int = 0
    batch_size: int = 16  # videos, each with all its views, in a global batch
    dtype: str = "auto"

    def __post_init__(self) -> None:
        at_least("evaluation", self, temporal_views=1, every_epochs=0, every_steps=1, num_videos=1, patience=0)
        at_least("evaluation", self, batch_size=1)
        one_of("evaluation", self, spatial_views=(1, 2, 3), dtype=EVALUATION_DTYPES)
        if self.patience and not self.every_epochs and self.every_steps is None:
            needed = "evaluations during training: set evaluation.every_epochs or evaluation.every_steps"
            raise ValueError(f"evaluation.patience={self.patience} needs {needed}")

    @property
    def views(self) -> int:
        """Number of views of a video."""
        return self.temporal_views * self.spatial_views

    def interval(self, steps_per_epoch: float) -> int:
        """Returns the steps between evaluations during training; 0: none."""
        if self.every_steps is not None:
            return self.every_steps
        return max(1, round(self.every_epochs * steps_per_epoch)) if self.every_epochs else 0


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps traced for TensorBoard's profiler (XProf); the trace is in `profile/` of the workdir."""

    steps: str = ""  # 'FIRST:LAST', counted from 1, both included; '' for none

    def __post_init__(self) -> None:
        if self.steps and self.range is None:
            raise ValueError(f"profile.steps={self.steps!r} must be FIRST:LAST with 1 <= FIRST <= LAST, e.g. '100:105'")

    @property
    def range(self) -> tuple[int, int] | None:
        """(first, last) step to trace, or None."""
        match = re.fullmatch(r"(\d+):(\d+)", self.steps)
        first, last = map(int, match.groups()) if match else (0, 0)
        return (first, last) if 1 <= first <= last else None


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Initialisation from pretrained weights, fitted to the model (section 3.4).

    Attributes:
      path: a checkpoint or weight file in any supported format; None: random initialisation, or `image_epochs`.
      image_epochs: where `path` is None: passes over the training videos in which an image model of the same size is
        trained first, on one frame of each video at a time, in `image_model/` of the workdir; 0: none. It is for data
        sets for whose frames there are no pretrained weights.
      grid: (n_t, n_h, n_w) tokens of the model in the file, where its positions allow several grids.
      embedding: of tubelets. `central_frame`: the kernel at frame t // 2, zeros elsewhere (eq. 9). `filter_inflation`:
        spread evenly over the frames (eq. 8; between tubelets of different length over the frames that each new frame
        covers, so that a static clip gives the same token). `random`. None: central_frame from images,
        filter_inflation between tubelets of different length.
      temporal_attention: Model 3's, where the weights have none. `zero`: a copy of the spatial attention with its
        output projection at zero: a block starts as the image model's, and learns. `copy`: a full copy. `random`.
      head: the classifier of each head. `match`: loaded where the weights have all classes of the data set, by name,
        in the data set's order; otherwise zero. `reinit`: zero. `keep`: loaded; an error where the class names differ
        or, if the weights have none, their number.
      pixel_mean, pixel_std: the weights expect (x - mean) / std of pixels x in [0, 1], one value for each channel;
        folded into the embedding exactly, since all our models take [-1, 1] (0.5 and 0.5). None: by the
        `preprocessor_config.json` of an image model, or 0.5.
    """

    path: str | None = None
    image_epochs: float = 0.0
    format: str | None = None  # a key of `vivit_jax.convert.FORMATS`; None: auto-detected
    prefix: str | None = None  # read only names with this prefix; None: auto-detected
    grid: tuple[int, ...] | None = None
    num_heads: int | None = None  # attention heads of the model in the file, where the file does not say
    embedding: str | None = None
    temporal_attention: str = "zero"
    temporal_encoder: str = "load"  # Model 2's, where the weights have one: `load` or `random`
    head: str = "match"
    pre_logits: str = "load"  # the dense layer before the head: `load` or `drop` that of the weights
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        one_of("init_from", self, embedding=(None, "central_frame", "filter_inflation", "random"))
        one_of("init_from", self, temporal_attention=("zero", "copy", "random"), temporal_encoder=("load", "random"))
        one_of("init_from", self, head=("match", "reinit", "keep"), pre_logits=("load", "drop"))
        at_least("init_from", self, num_heads=1, image_epochs=0)
        if self.grid is not None:
            grid = tuple(self.grid)
            if len(grid) not in (2, 3) or any(not isinstance(n, int) or n < 1 for n in grid):
                raise ValueError(f"init_from.grid={self.grid} must be the (n_t, n_h, n_w), > 0, of the weights' tokens")
            object.__setattr__(self, "grid", grid)
        for field in ("pixel_mean", "pixel_std"):
            if (values := getattr(self, field)) is None:
                continue
            if not isinstance(values, tuple | list) or any(field == "pixel_std" and not x > 0 for x in values):
                raise ValueError(f"init_from.{field}={values} must be a number for each channel, the std above 0")
            object.__setattr__(self, field, tuple(float(x) for x in values))
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("init_from.pixel_mean and init_from.pixel_std go together: give both or neither")
