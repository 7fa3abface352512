"""Ranks the labels of video files with a trained model, and draws its attention.

    python -m vivit_jax.predict --workdir=runs/moving_digits clip.mp4 other.webm
    python -m vivit_jax.predict --workdir=runs/moving_digits --pictures=out --json clip.mp4

Needs only the checkpoint, which contains the config and the class names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config import flags as command_line
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.config.sections import EVALUATION_DTYPES
from vivit_jax.data import pipeline
from vivit_jax.data.video import decode
from vivit_jax.evaluation import evaluate
from vivit_jax.evaluation.evaluator import for_inference
from vivit_jax.evaluation.predictions import rank_labels
from vivit_jax.models import ViViTConfig, inference
from vivit_jax.train_step import make_eval_step, normalise
from vivit_jax.utils import logs, plots


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The labels of one file.

    Attributes:
      path: the file.
      ranked: {head: [(label, probability), ...]}, the most probable first. With the heads verb and noun also `action`,
        "verb noun", by the product of both probabilities.
      views: uint8 [V, T, H, W, 3], the model's input.
      attend: clips, uint8 [1, T, H, W, 3] -> their `attention_map`.
    """

    path: str
    ranked: dict[str, list[tuple[str, float]]]
    views: np.ndarray
    attend: Callable[[np.ndarray], jax.Array]

    @functools.cached_property
    def attention(self) -> np.ndarray:
        """The attention of the first view, float32 [n_t, n_h, n_w]; computed when it is first asked for."""
        return np.asarray(self.attend(self.views[:1]))


class Predictor:
    """A restored model that predicts the labels of video files.

    Args:
      checkpoint: a workdir, a folder of steps, or one step.
      temporal_views, spatial_views: None: as in the checkpoint's config.
      weights: 'params' or 'ema'.
      dtype: of the compute, as `config.evaluation.dtype`; None: as in the checkpoint's config.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
      ConfigError: the number of views is out of range, or the dtype unknown.
    """

    def __init__(
        self,
        checkpoint: epath.PathLike,
        *,
        temporal_views: int | None = None,
        spatial_views: int | None = None,
        weights: str = "params",
        dtype: str | None = None,
    ):
        # Files are processed one at a time, so one device is enough.
        mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        model, params, metadata, self.path = evaluate.restore_for_inference(checkpoint, mesh, weights=weights)
        options = {"temporal_views": temporal_views, "spatial_views": spatial_views, "dtype": dtype}
        given = {field: value for field, value in options.items() if value is not None}
        evaluation = metadata["config"].get("evaluation", {}) | given
        self._experiment = Experiment.from_config(metadata["config"] | {"evaluation": evaluation})
        self.model = for_inference(model, self._experiment)
        self._params = inference.cast_params(params, self.model.config)
        self.preprocessing = Preprocessing.of_checkpoint(metadata, self.model.config)
        if self.preprocessing.assumed:
            logging.warning("%s does not say how videos are prepared: %s", self.path, self.preprocessing.assumed)
        self.class_names: dict[str, list[str]] = metadata["class_names"]
        self.multi_label = frozenset(metadata.get("multi_label", ()))
        self._logits = jax.jit(make_eval_step(self.model.apply, inference.clips_at_once(self.model.config)))
        attention = jax.jit(lambda params, clip: attention_map(self.model.apply, self.model.config, params, clip))
        self._attend = functools.partial(attention, self._params)

    def __call__(self, path: epath.PathLike, top: int = 5) -> Prediction:
        """Decodes a file, cuts its views and ranks the labels.

        Args:
          path: a video file that FFmpeg can decode; one shorter than a clip is looped.
          top: labels per head.

        Raises:
          VideoError: the file is not a video, or damaged.
        """
        evaluation = self._experiment.evaluation
        views = pipeline.views_from_file(
            path,
            self.preprocessing.clip,
            evaluation.temporal_views,
            evaluation.spatial_views,
            self.preprocessing.stored_short_side,
            self.preprocessing.stored_fps,
        )
        logits = jax.device_get(self._logits(self._params, {"video": views[None]}))
        logits = {head: logits[head][0] for head in self.class_names}
        ranked = rank_labels(logits, self.class_names, top, self.multi_label, self._experiment.loss.name)
        return Prediction(str(path), ranked, views, self._attend)


def attention_map(apply_fn: Callable[..., Any], config: ViViTConfig, params: Any, video: jax.Array) -> jax.Array:
    """Returns the attention weights of the last layer over the token grid.

    With a class token: its row of the weights, averaged over the heads. Without: the weight of each token, averaged
    over all queries. Factorised models: the product of the weight in time and the weight in space.

    Args:
      apply_fn: `apply` of the model.
      config: of the model.
      params: of the model.
      video: uint8 [1, T, H, W, 3].

    Returns:
      float32 [n_t, n_h, n_w], summing to 1.
    """
    _, sown = apply_fn({"params": params}, normalise(video), sow_attention=True, mutable=["intermediates"])
    token, grid = config.classifier == "token", config.grid

    def last(*path: str) -> jax.Array:
        leaf: Any = sown["intermediates"]
        for name in path:
            leaf = leaf[name]
        weights = leaf[-1, 0]  # last layer, first clip
        return weights.mean(axis=-3)  # over the heads: [..., queries, keys]

    def received(weights: jax.Array, has_token: bool) -> jax.Array:
        return weights[..., 0, 1:] if has_token else weights.mean(axis=-2)

    if config.attention == "spatiotemporal":
        where = received(last("encoder", "layers", "attention", "weights"), token)
    elif config.attention == "factorised_encoder":
        where = received(last("spatial_encoder", "layers", "attention", "weights"), token)  # [n_t, n_s]
        if config.temporal_layers:
            when = received(last("temporal_encoder", "layers", "attention", "weights"), token)  # [n_t] or [n_s, n_t]
            where = where / where.sum(-1, keepdims=True) * (when[:, None] if config.frame_pooling else when.T)
    else:
        layers = ("encoder", "layers")
        names = (
            (("attention_space", "weights"), ("attention_time", "weights"))
            if config.attention == "factorised_self_attention"
            else (("attention", "weights_space"), ("attention", "weights_time"))
        )
        space, time = (received(last(*layers, *name), False) for name in names)  # [n_t, n_s], [n_s, n_t]
        where = space * time.T
    where = where.reshape(grid).astype("float32")
    return where / where.sum()


def describe(prediction: Prediction) -> str:
    """Returns the ranking of a file as text."""
    lines = [prediction.path]
    for head, ranked in prediction.ranked.items():
        lines += [f"  {head}"] * (len(prediction.ranked) > 1)
        lines += [f"    {probability:6.1%}  {label}" for label, probability in ranked]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    files, options = argv[1:], flags.FLAGS
    if not files:
        raise app.UsageError("name at least one video file")
    logs.configure_logging()
    with command_line.exit_on(checkpointing.CheckpointError, ConfigError):
        predictor = Predictor(
            options.workdir,
            temporal_views=options.temporal_views,
            spatial_views=options.spatial_views,
            weights=options.weights,
            dtype=options.dtype,
        )
    failed = 0
    for file in files:
        try:
            prediction = predictor(file, options.top)
        except decode.VideoError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        if options.json:
            print(json.dumps({"file": prediction.path, "labels": prediction.ranked}), flush=True)
        else:
            print(describe(prediction), flush=True)
        if options.pictures:
            path = epath.Path(file)
            figure = plots.prediction(prediction.views[0], prediction.attention, prediction.ranked, path.name)
            plots.save(figure, epath.Path(options.pictures) / f"prediction_{path.stem}.png")
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def run() -> None:
    """Defines the flags (not on import, since other programs have flags of the same names) and runs the program."""
    flags.DEFINE_string("workdir", None, "A run, whose best checkpoint is used, or the folder of one step.")
    flags.DEFINE_integer("top", 5, "Number of labels to print.", lower_bound=1)
    flags.DEFINE_integer("temporal_views", None, "Clips over the video's length. Default: the config's.", lower_bound=1)
    flags.DEFINE_integer("spatial_views", None, "Crops of each clip, 1 to 3. Default: the config's.")
    flags.DEFINE_enum("weights", "params", ["params", "ema"], "The parameters, or their EMA.")
    flags.DEFINE_enum("dtype", None, EVALUATION_DTYPES, "Of the compute. Default: the config's evaluation.dtype, auto.")
    flags.DEFINE_string("pictures", None, "Folder for a PNG of each file: frames, attention, labels.")
    flags.DEFINE_bool("json", False, "Print one JSON object per line.")
    command_line.run(main, required=("workdir",), verbosity=logging.WARNING, positional=True)


if __name__ == "__main__":
    run()
