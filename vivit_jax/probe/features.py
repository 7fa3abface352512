"""Settings of a probe, its frozen model, and the features of videos: computed once, cached on disk."""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.evaluation.evaluate import restore_for_inference
from vivit_jax.evaluation.evaluator import for_inference, open_batches, run_batches
from vivit_jax.evaluation.predictions import sort_by_index
from vivit_jax.models import ViViT, abstract_params, inference
from vivit_jax.train.setup import inherit_model_fields
from vivit_jax.train_step import map_views
from vivit_jax.utils import storage
from vivit_jax.utils.checks import at_least, one_of, within

METHODS = ("knn", "linear")
FOLDER = "features"
_FORMAT = 1  # of the files and of the computation; raise it to invalidate older files


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the features (the input of the head) are computed, and what is fitted to them."""

    methods: tuple[str, ...] = METHODS
    temporal_views: int = 1  # clips evenly spaced over a video; the features of the views are averaged
    spatial_views: int = 1  # 1 (centre), 2 or 3 crops along the longer side
    neighbours: tuple[int, ...] = (10, 20)  # values of k
    temperature: float = 0.07  # a neighbour votes with weight exp(cosine similarity / temperature)
    # Values of C (small: strong regularisation); the best on held-out training videos is chosen.
    inverse_penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)

    def __post_init__(self) -> None:
        for field in ("methods", "neighbours", "inverse_penalties"):
            object.__setattr__(self, field, tuple(dict.fromkeys(getattr(self, field))))
            if not getattr(self, field):
                raise ValueError(f"probe.{field} is empty; give at least one")
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"probe.methods: {', '.join(unknown)} is not known; choose from {', '.join(METHODS)}")
        one_of("probe", self, spatial_views=(1, 2, 3))
        at_least("probe", self, temporal_views=1)
        within("probe", self, "(0, inf)", "temperature")
        if min(self.neighbours) < 1:
            raise ValueError(f"probe.neighbours={self.neighbours} must each be at least 1")
        if not all(0 < c < math.inf for c in self.inverse_penalties):
            raise ValueError(f"probe.inverse_penalties={self.inverse_penalties} must each be greater than 0, finite")


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the N videos of a split, in its order."""

    values: np.ndarray  # float32 [N, d]
    readable: np.ndarray  # bool [N]; False where the video could not be read, and its row is 0
    cached: bool = False  # whether they were read from disk


def restore(experiment: Experiment, checkpoint: epath.PathLike, mesh: Any, which: str) -> tuple[ViViT, Any, str]:
    """Restores the frozen model, as (model, parameters, path); `jax.set_mesh(mesh)` must be active.

    A `checkpoint` of a run (a workdir, a folder of steps or one step) states its own model. For pretrained weights, in
    any format of `convert.initialise`, `experiment` has `model` and `init_from` (section 3.4).
    """
    try:
        checkpointing.locate(checkpoint)
    except checkpointing.CheckpointError:
        pass  # not a checkpoint of a run
    else:
        model, params, _, path = restore_for_inference(checkpoint, mesh, which=which, encoder=True)
        return model, params, str(path)
    # Without heads, as the features come before them.
    options = dataclasses.replace(experiment.init_from, path=str(checkpoint), head="reinit")
    experiment = inherit_model_fields(dataclasses.replace(experiment, init_from=options), {}, None)
    config = experiment.model_config({})
    sharding.check_model(mesh, config)
    converted = convert.initialise(options.path, config, options, seed=experiment.seed)
    logging.info("Initialised from %s", converted.report.summary())
    missing = [entry for entry in converted.report.entries if entry.outcome == "initialised"]
    if missing:
        shown = f"{missing[0].name}: {missing[0].how}{'; and others' if len(missing) > 1 else ''}"
        effect = "the features are partly those of an untrained model"
        logging.warning("%d arrays of the model are not in the weights (%s): %s.", len(missing), shown, effect)
    shardings = sharding.state_sharding(mesh, {"params": abstract_params(converted.config)})["params"]
    return ViViT(converted.config), jax.device_put(converted.params, shardings), str(checkpoint)


def feature_step(model: ViViT, tokens: bool = False) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
    """Returns `(params, batch) -> {"features": float32 [B, d], "mask": [B], "index": [B]}`, averaged over the views.

    With `tokens`, the features are those of the last encoder (see `ViViT`) for each view, [B, V, N, d].
    """

    def step(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        def features_of(clips: jax.Array) -> jax.Array:
            out = model.apply({"params": params}, clips, train=False, features=True)
            return out["tokens" if tokens else "pre_logits"].astype(jnp.float32)

        views = map_views(features_of, batch["video"], inference.clips_at_once(model.config))
        features = jnp.moveaxis(views, 0, 1) if tokens else jnp.mean(views, axis=0)
        return {"features": features} | {name: batch[name] for name in ("mask", "index") if name in batch}

    return step


def extract(
    splits: Sequence[RecordSplit],
    model: ViViT,
    params: Any,
    name: str,
    mesh: Any,
    experiment: Experiment,
    settings: ProbeConfig,
    workdir: epath.PathLike,
) -> list[Features | None]:
    """Computes the features of each split, or reads them from `WORKDIR/features/SPLIT-KEY.npz`.

    The key is a hash of the weights, the model, the videos and the views. The results have the order of `splits`, and
    are None on all processes but the first. `params` are on `mesh`, set by `jax.set_mesh`. `name`: for messages.
    """
    model = for_inference(model, experiment)
    spec, views = experiment.clip_spec(model.config), (settings.temporal_views, settings.spatial_views)
    step = inference.jit(feature_step(model), model.config, mesh)
    key_fields = {
        "format": _FORMAT,
        "weights": checkpointing.checksums(params, ordered=True),
        "model": {field: value for field, value in model.config.to_dict().items() if field != "num_classes"},
        "clips": dataclasses.asdict(spec),
        "views": views,
        "features": "pre_logits",
    }
    params = inference.cast_params(params, model.config)
    result = []
    for split in splits:
        digests = split.digests()  # without that of the labels
        videos = f"{split.form} {split.chunk_frames} {digests['videos']} {digests['records']}"
        key = json.dumps(key_fields | {"videos": videos}, sort_keys=True, default=str)
        path = epath.Path(workdir) / FOLDER / f"{split.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        features = _read(path, key) if jax.process_index() == 0 else None
        # Only the first process may see the disk, and all must take the same branch.
        if multihost_utils.broadcast_one_to_all(np.asarray(features is not None)):
            logging.info("The features of %s, %d videos, are in %s.", split.name, split.num_videos, path)
        else:
            with open_batches(split, spec, views, experiment, mesh) as batches:
                logging.info("Features of %s: %d videos, %s", split.name, split.num_videos, batches.description)
                outputs = run_batches(step, params, batches, mesh, experiment.evaluation.batch_size)
                features = _collect(outputs, split, batches.num_batches, name)
            if jax.process_index() == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                with storage.written(path) as partial, open(partial, "wb") as file:
                    np.savez(file, key=np.asarray(key), values=features.values, readable=features.readable)
        result.append(features if jax.process_index() == 0 else None)
    return result


def _collect(outputs: Iterator[Any], split: RecordSplit, num_batches: int, name: str) -> Features:
    """Fetches the outputs of `feature_step` and orders them by video."""
    fetched = []
    for number, batch in enumerate(map(jax.device_get, outputs), start=1):
        fetched.append(batch)
        logging.log_every_n_seconds(logging.INFO, "Features of %s: batch %d of %d", 15, split.name, number, num_batches)
    arrays = sort_by_index(fetched)
    values, readable = arrays["features"], arrays["mask"] > 0
    values[~readable] = 0
    if not readable.any():
        raise ValueError(f"none of the {split.num_videos} videos of {split.folder}, {split.name}, can be read")
    if num_not_finite := np.sum(~np.isfinite(values).all(axis=1)):
        shown = f"the features of {num_not_finite} of {split.num_videos} videos of {split.name} are not finite"
        raise ValueError(f"{shown}: the weights of {name} are not sound")
    return Features(values, readable)


def labels_of(split: RecordSplit, selected: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the labels of the videos selected by bool [N]: {head: int32 [M]}, multi-label uint8 [M, C] of 0 and 1."""
    labels = {head: split.labels[head][selected] for head in split.heads}
    for head in split.multi_label:  # ids [M, L], padded with -1, which marks the additional last column
        present = np.zeros((len(labels[head]), split.heads[head] + 1), np.uint8)
        np.put_along_axis(present, labels[head], 1, axis=1)
        labels[head] = present[:, :-1]
    return labels


def _read(path: epath.Path, key: str) -> Features | None:
    """Reads a file with this key; None where it is missing, damaged, or has another key."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            if str(arrays["key"]) == key:
                return Features(arrays["values"], arrays["readable"], cached=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read (%s); recomputing the features.", path, error)
    return None
