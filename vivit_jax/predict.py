"""Video files in, ranked labels out, and what the model looked at.

    python -m vivit_jax.predict --workdir=runs/moving_digits clip.mp4 other.webm
    python -m vivit_jax.predict --workdir=runs/moving_digits --pictures=out --json clip.mp4

The checkpoint alone is enough: it holds the config and the class names.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config.experiment import ConfigError, DataConfig, Experiment
from vivit_jax.data import build, catalog, pipeline
from vivit_jax.data.video import decode
from vivit_jax.evaluation import evaluate, metrics
from vivit_jax.models import ViViTConfig
from vivit_jax.train_step import make_eval_step, normalise
from vivit_jax.utils import logs, plots


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The labels of one file.

    Attributes:
      path: the file.
      ranked: {head: [(label, probability in [0, 1]), ...]}, the most probable first; with the heads verb and noun, an
        `action` too, "verb noun", by the product of the two.
      views: uint8 [V, T, H, W, 3], what the model saw.
      attention: float32 [n_t, n_h, n_w] over the first view, summing to 1.
    """

    path: str
    ranked: dict[str, list[tuple[str, float]]]
    views: np.ndarray
    attention: np.ndarray


class Predictor:
    """A restored model, ready for files.

    Args:
      checkpoint: a workdir, a folder of steps, or one step.
      temporal_views, spatial_views: default, those of the checkpoint's config.
      weights: 'params', or 'ema' for their average, of a run that kept one.

    Raises:
      CheckpointError: none there, or damaged.
      ConfigError: views out of range.
    """

    def __init__(
        self,
        checkpoint: epath.PathLike,
        *,
        temporal_views: int | None = None,
        spatial_views: int | None = None,
        weights: str = "params",
    ):
        # One file at a time: one device is enough, wherever the model was trained.
        mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        self.model, self._params, meta, self.path = evaluate.restore_for_inference(checkpoint, mesh, weights=weights)
        config = meta["config"]
        for field, value in (("temporal_views", temporal_views), ("spatial_views", spatial_views)):
            if value is not None:
                config["evaluation"][field] = value
        experiment = Experiment.from_config(config)
        self._views = experiment.evaluation
        self._short_side = _short_side(experiment.data)
        self._spec = experiment.clip_spec(self.model.config)
        self.class_names: dict[str, list[str]] = meta["class_names"]
        self.multi_label = frozenset(meta.get("multi_label", ()))
        self.loss = experiment.loss.name
        self._logits = jax.jit(make_eval_step(self.model.apply))
        self._attention = jax.jit(
            lambda params, video: attention_map(self.model.apply, self.model.config, params, video)
        )

    def __call__(self, path: epath.PathLike, top: int = 5) -> Prediction:
        """Decodes a file, cuts its views, ranks the labels.

        Args:
          path: a video file of any codec that FFmpeg reads; one shorter than a clip is looped.
          top: labels to rank, per head.

        Raises:
          VideoError: the file is not a video, or broken.
        """
        views = pipeline.views_from_file(
            path, self._spec, self._views.temporal_views, self._views.spatial_views, self._short_side
        )
        logits = jax.device_get(self._logits(self._params, {"video": views[None]}))
        attention = np.asarray(self._attention(self._params, views[:1]))
        return Prediction(
            str(path),
            rank({h: logits[h][0] for h in self.class_names}, self.class_names, top, self.multi_label, self.loss),
            views,
            attention,
        )


def _short_side(data: DataConfig) -> int:
    """Short side of the frames that the model was trained on: of the records, or else the catalog's."""
    try:
        return catalog.of_records(data.name, build.records_folder(data.name, data.dir)).short_side
    except ValueError:  # one's own data, and the records are elsewhere
        return catalog.DatasetInfo.short_side


def rank(
    logits: Mapping[str, np.ndarray],
    class_names: Mapping[str, Sequence[str]],
    top: int,
    multi_label: Collection[str] = (),
    loss: str = "softmax",
) -> dict[str, list[tuple[str, float]]]:
    """The most probable labels of each head, and of the pairs of verb and noun.

    Args:
      logits: {head: [C]}.
      class_names: {head: C names}.
      top: how many, or as many as there are.
      multi_label: heads of several labels at once, whose probabilities are each by themselves (sigmoid).
      loss: 'softmax' or 'sigmoid', what the heads were trained with; with the latter all are as those.
    """
    names = {head: list(class_names[head]) for head in logits}
    scores = {
        head: np.asarray((jax.nn.sigmoid if head in multi_label or loss == "sigmoid" else jax.nn.softmax)(values))
        for head, values in logits.items()
    }
    if {"verb", "noun"} <= set(logits) - set(multi_label):
        pairs = metrics.pair_scores(logits["verb"][None], logits["noun"][None])[0]
        scores[metrics.ACTION] = np.exp(np.asarray(pairs))
        names[metrics.ACTION] = [f"{verb} {noun}" for verb in names["verb"] for noun in names["noun"]]
    order = {head: np.argsort(-values, kind="stable")[:top] for head, values in scores.items()}
    return {head: [(names[head][i], float(scores[head][i])) for i in order[head]] for head in scores}


def attention_map(apply_fn: Callable[..., Any], config: ViViTConfig, params: Any, video: jax.Array) -> jax.Array:
    """Where the last layer looks, as weights over the token grid.

    With a class token: its row of the attention weights, averaged over the heads. Without: the weight that a token
    gets, averaged over all queries. Factorised models: the product of what falls on the frame and on the place in it.

    Args:
      apply_fn: the model's.
      config: the model's.
      params: its parameters.
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
    """The ranking as text, a block a file."""
    lines = [prediction.path]
    for head, ranked in prediction.ranked.items():
        lines += [f"  {head}"] * (len(prediction.ranked) > 1)
        lines += [f"    {probability:6.1%}  {label}" for label, probability in ranked]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    paths = argv[1:]
    if not paths:
        raise app.UsageError("name at least one video file")
    logs.configure_logging()
    try:
        views = {"temporal_views": flags.FLAGS.temporal_views, "spatial_views": flags.FLAGS.spatial_views}
        predictor = Predictor(flags.FLAGS.workdir, **views, weights=flags.FLAGS.weights)
    except (checkpointing.CheckpointError, ConfigError) as error:
        sys.exit(f"error: {error}")
    failed = 0
    for path in paths:
        try:
            found = predictor(path, flags.FLAGS.top)
        except decode.VideoError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        if flags.FLAGS.json:
            print(json.dumps({"file": found.path, "labels": found.ranked}), flush=True)
        else:
            print(describe(found), flush=True)
        if flags.FLAGS.pictures:
            name = f"prediction_{epath.Path(path).stem}.png"
            figure = plots.prediction(found.views[0], found.attention, found.ranked, epath.Path(path).name)
            plots.save(figure, epath.Path(flags.FLAGS.pictures) / name)
    if failed:
        sys.exit(f"{failed} of {len(paths)} files could not be read")


def run() -> None:
    """Entry point."""
    # Defined here, so that this module can be imported beside others whose flags have the same names.
    flags.DEFINE_string("workdir", None, "Run to take the best checkpoint from; or one step's folder.")
    flags.DEFINE_integer("top", 5, "How many labels to show.", lower_bound=1)
    flags.DEFINE_integer("temporal_views", None, "Clips over the length; default, the config's.", lower_bound=1)
    flags.DEFINE_integer("spatial_views", None, "Crops of each clip, 1 to 3; default, the config's.")
    flags.DEFINE_enum("weights", "params", ["params", "ema"], "The parameters, or their average.")
    flags.DEFINE_string("pictures", None, "Folder for a PNG of each file: frames, attention, labels.")
    flags.DEFINE_bool("json", False, "One JSON object a line instead of text.")
    flags.mark_flag_as_required("workdir")
    logging.set_verbosity(logging.WARNING)  # the labels are the output
    app.run(main)


if __name__ == "__main__":
    run()
