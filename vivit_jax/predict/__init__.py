"""Ranks the labels of video files with a trained model, and draws what they rest on.

    python -m vivit_jax.predict --workdir=runs/moving_digits clip.mp4 folder "more/*.webm"
    python -m vivit_jax.predict --checkpoint=vivit-b-16x2-kinetics400 --pictures=out --json clip.mp4

    model = vivit_jax.load("runs/moving_digits")
    print(model("clip.mp4", top=5))
    model.explain("clip.mp4", "out.mp4")

Needs only the checkpoint, which contains the config, the class names and what prepares a video.
"""

import dataclasses
import functools
import itertools
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.preprocessing import Preprocessing, usual_input
from vivit_jax.convert import describe_model
from vivit_jax.convert.source import open_weights
from vivit_jax.convert.tables import Hints
from vivit_jax.data import host_tf, pipeline
from vivit_jax.data.video import encode
from vivit_jax.evaluation.evaluate import named_classes, restore_for_inference
from vivit_jax.evaluation.evaluator import for_inference
from vivit_jax.evaluation.predictions import rank_labels
from vivit_jax.models import ViViT, abstract_params, inference
from vivit_jax.models.relevance import relevance
from vivit_jax.train_step import make_eval_step, normalise
from vivit_jax.utils import class_names, plots, storage

# Files share a batch as long as their views have no more bytes, and they do not occupy the device, so that memory stays
# bounded and the first answer does not wait for many others.
_BATCH_BYTES = 1 << 25
_MOST_FILES = 8
_KINETICS = (400, 600)  # numbers of classes of the data sets whose class names are in `classes/`


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The labels of one file; as a string, a table of them.

    `ranked` is {head: [(label, probability), ...]}, the most probable first. With the heads verb and noun it also has
    `action`, "verb noun", by the product of both probabilities.
    """

    path: str
    ranked: dict[str, list[tuple[str, float]]]
    views: np.ndarray  # uint8 [V, T, H, W, 3], the model's input
    clips: np.ndarray  # those of the middle crop, uint8 [temporal views, T, H, W, 3]
    explain: Callable[..., np.ndarray]  # (method="gradient") -> `relevance`, or that of another method

    @functools.cached_property
    def relevance(self) -> np.ndarray:
        """How much the first label of each head rests on each token of `clips` (`vivit_jax.models.relevance`).

        float32 [temporal views, n_t, n_h, n_w], each view summing to 1; computed when it is first asked for.
        """
        return self.explain()

    def __str__(self) -> str:
        lines = [self.path]
        for head, ranked in self.ranked.items():
            lines += [f"  {head}"] * (len(self.ranked) > 1)
            lines += [f"    {probability:6.1%}  {label}" for label, probability in ranked]
        return "\n".join(lines)


Result = tuple[storage.PathLike, Prediction | Exception]


class Predictor:
    """A restored model that predicts the labels of video files.

    `checkpoint` is a workdir, a folder of steps, or one step; or weights of any format that `vivit_jax.convert` reads.
    `weights` is 'params' or 'ema'. The numbers of views and the `dtype` of the compute are those of the checkpoint's
    `config.evaluation` where None. Without `classifier`, a model may have none. Raises ConfigError for wrong numbers of
    views or dtypes, CheckpointError for a model without the classifier, errors of `restore`.
    """

    def __init__(
        self,
        checkpoint: epath.PathLike,
        *,
        temporal_views: int | None = None,
        spatial_views: int | None = None,
        weights: str = "params",
        dtype: str | None = None,
        classifier: bool = True,
    ):
        # One device is enough for a few files.
        mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        model, params, metadata, self.path = restore(checkpoint, mesh, weights)
        if classifier and model.config.num_classes is None:
            raise checkpointing.CheckpointError(f"{self.path} holds a model without a classifier, which has no labels")
        options = {"temporal_views": temporal_views, "spatial_views": spatial_views, "dtype": dtype}
        given = {field: value for field, value in options.items() if value is not None}
        evaluation = metadata["config"].get("evaluation", {}) | given
        self.experiment = Experiment.from_config(metadata["config"] | {"evaluation": evaluation})
        self.model = for_inference(model, self.experiment)
        self._params = inference.unstacked(inference.cast_params(params, self.model.config), self.model.config)
        self.preprocessing = Preprocessing.of_checkpoint(metadata, self.model.config)
        if self.preprocessing.assumed:
            logging.warning("%s does not say how videos are prepared: %s", self.path, self.preprocessing.assumed)
        self.class_names: dict[str, list[str]] = metadata["class_names"]
        self.multi_label = frozenset(metadata.get("multi_label", ()))
        config = self.model.config
        self._logits = inference.jit(make_eval_step(self.model.apply, inference.clips_at_once(config)), config)
        self._relevance = jax.jit(functools.partial(relevance, config), static_argnames="method")

    def __call__(self, path: storage.PathLike, top: int = 5) -> Prediction:
        """Decodes a file, cuts its views and ranks the labels, `top` per head.

        `path` is a video file that FFmpeg can decode, or a folder with its frames as numbered pictures, at the
        records' rate (`--fps` of a build) or 25 a second; a short one is looped. Raises VideoError for other files.
        """
        ((_, result),) = self.predict([path], top)
        if isinstance(result, Exception):
            raise result
        return result

    def explain(self, path: storage.PathLike, out: storage.PathLike, method: str = "gradient") -> Prediction:
        """Predicts a file and writes a video of what the labels rest on, see `write_explanation`."""
        prediction = self(path)
        write_explanation(prediction, out, method)
        return prediction

    def predict(self, paths: Iterable[storage.PathLike], top: int = 5) -> Iterator[Result]:
        """Yields (path, prediction, or why there is none) of each file in its order; see `__call__` and `run`."""
        yield from self.predict_views(self.read(paths), top)

    def predict_views(self, videos: Iterable[tuple[Any, Any]], top: int = 5) -> Iterator[tuple[Any, Any]]:
        """Yields (name, prediction, or the exception) of videos, which are (name, views as in `Prediction`)."""
        for name, views, logits in self.run(self._logits, videos):
            if isinstance(views, Exception):
                yield name, views
                continue
            logits = {head: logits[head] for head in self.class_names}
            ranked = rank_labels(logits, self.class_names, top, self.multi_label, self.experiment.loss.name)
            crops = self.experiment.evaluation.spatial_views
            clips, classes = views[crops // 2 :: crops], {head: x.argmax(keepdims=True) for head, x in logits.items()}
            explain = functools.partial(self._explain, clips, classes)
            yield name, Prediction(str(name), ranked, views, clips, explain)

    def _explain(self, clips: np.ndarray, classes: Mapping[str, np.ndarray], method: str = "gradient") -> np.ndarray:
        params = inference.stacked(self._params)
        maps = [self._relevance(params, normalise(clip[None]), classes, method=method) for clip in clips]
        maps = np.concatenate(jax.device_get(maps))  # [temporal views, n_t, n_h, n_w]
        totals = maps.sum((1, 2, 3), keepdims=True)
        return maps / np.where(totals > 0, totals, 1)

    def read(self, paths: Iterable[storage.PathLike]) -> Iterator[tuple[storage.PathLike, Any]]:
        """Yields (path, its views uint8 [V, T, H, W, 3] or an exception)."""
        evaluation, prepare = self.experiment.evaluation, self.preprocessing
        options = evaluation.temporal_views, evaluation.spatial_views, prepare.stored_short_side, prepare.stored_fps
        for path in paths:
            try:
                views = pipeline.views_from_file(path, prepare.clip, *options)
            except Exception as error:  # whatever is wrong with a file or its name, the others are predicted
                views = error
            yield path, views

    def run(self, program: Callable[..., Any], videos: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, Any]]:
        """Yields (name, views, output) of each of `videos`, (name, views or exception), of which several share a batch.

        `program` is a jitted `(params, {"video": uint8 [N, V, T, H, W, 3]}) -> outputs [N, ...]`. The next batch is
        decoded while the device computes one.
        """
        waiting, rows = ([], None), 0
        for batch in itertools.chain(self._batches(videos), [[]]):
            outputs = None
            if readable := [views for _, views in batch if not isinstance(views, Exception)]:
                rows = max(rows, len(readable))  # so that the last batch, which is smaller, needs no other program
                padded = readable + readable[:1] * (rows - len(readable))
                outputs = program(self._params, {"video": np.stack(padded) if rows > 1 else readable[0][None]})
            done, row = jax.device_get(waiting[1]), itertools.count()
            for name, views in waiting[0]:
                failed = isinstance(views, Exception)
                yield name, views, None if failed else jax.tree.map(operator.itemgetter(next(row)), done)
            waiting = batch, outputs

    def _batches(self, videos: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
        most = min(_MOST_FILES, inference.clips_at_once(self.model.config))
        batch, size = [], 0  # bytes of the views
        for name, views in videos:
            batch.append((name, views))
            if isinstance(views, Exception):
                continue
            size += views.nbytes
            if size + views.nbytes > _BATCH_BYTES or size >= most * views.nbytes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def write_explanation(prediction: Prediction, out: storage.PathLike, method: str = "gradient") -> None:
    """Writes a video of the relevance of each part of the frames, by a method of `vivit_jax.models.relevance`.

    Its clips, the temporal views, follow one another at 8 frames a second. Raises ValueError for another method, or a
    path `out` that does not end in one of `encode.ANIMATIONS`.
    """
    if storage.path(out).suffix.lower() not in encode.ANIMATIONS:
        raise ValueError(f"{out} must end in {', '.join(encode.ANIMATIONS)}")
    maps = np.concatenate(prediction.explain(method))  # [temporal views * n_t, n_h, n_w]
    ranked = prediction.ranked
    first = [labels[0] for head, labels in ranked.items() if head == "action" or "action" not in ranked]
    title = f"{os.path.basename(prediction.path)}: {', '.join(f'{label} {share:.0%}' for label, share in first)}"
    storage.path(out).parent.mkdir(parents=True, exist_ok=True)
    encode.write_video(storage.path(out), plots.explanation(np.concatenate(prediction.clips), maps, title), fps=8)


def restore(checkpoint: epath.PathLike, mesh: Any, weights: str) -> tuple[ViViT, Any, dict[str, Any], str]:
    """Returns (model, parameters, metadata, path) as `restore_for_inference`, also of weights that `convert` reads.

    Raises CheckpointError for a damaged checkpoint, or a path that does not exist or is an empty folder; FileError,
    ConversionError or ValueError for weights that are damaged, or not those of a ViViT.
    """
    path, of_run = epath.Path(checkpoint), True
    try:
        checkpointing.locate(path)
    except checkpointing.CheckpointError:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise
        of_run = False
    threading.Thread(target=host_tf.load).start()  # takes seconds, as does reading the weights
    if not of_run:
        return _read(path, mesh)
    model, params, metadata, step = restore_for_inference(path, mesh, weights=weights, encoder=True)
    return model, params, metadata, str(step)


def _read(path: epath.Path, mesh: Any) -> tuple[ViViT, Any, dict[str, Any], str]:
    with open_weights(path) as weights:
        try:
            config = weights.model_config(Hints())
        except ValueError as error:  # what only flags can tell
            convert = f"python -m vivit_jax.convert --from={path} --to=RUN --format=orbax"
            raise ValueError(f"{error}\nconvert them first, with that flag, and predict with RUN: {convert}") from None
        names, where, stored = weights.class_names(config), weights.container.where, weights.container.metadata
        pixels, ignored = weights.pixels(config)
        params = flax.traverse_util.unflatten_dict(weights.load(config, pixels=pixels).params, sep="/")
    if ignored is not None:
        logging.warning("%s: %s, with python -m vivit_jax.convert", where, ignored.warning("--"))
    fields = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    heads = {head or "label": classes for head, classes in config.heads}
    for head, classes in heads.items():
        if classes in _KINETICS and (head not in names or class_names.are_placeholders(names[head])):
            text = resources.files(__package__).joinpath(f"classes/kinetics{classes}.txt").read_text(encoding="utf-8")
            names[head] = text.splitlines()
            taken = f"taken for those of Kinetics-{classes} in alphabetical order, which was not checked"
            logging.warning("%s does not name its %d classes: %s.", where, classes, taken)
    config_fields = {"input": usual_input(config, stored.get("preprocessor")), "model": fields}
    metadata = {"config": config_fields, "heads": heads, "data": {}}
    metadata["class_names"] = named_classes({"heads": heads, "class_names": names}, where)
    # `auto` backends and dtypes are those of a run.
    model = ViViT(Experiment.from_config(metadata["config"]).model_config(heads))
    logging.info("%s: %s", where, describe_model(config))
    shardings = sharding.state_sharding(mesh, {"params": abstract_params(model.config)})["params"]
    return model, jax.device_put(params, shardings), metadata, str(path)
