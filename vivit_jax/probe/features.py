"""Features of every video of a split, computed once by the frozen model and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vivit_jax import sharding
from vivit_jax.checkpoint import order_sensitive_checksums
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.probe.config import ProbeConfig
from vivit_jax.train_step import normalise
from vivit_jax.utils import storage

FOLDER = "features"
_FORMAT = 1  # of the files, and of how features are made: another one makes old files void


@dataclasses.dataclass(frozen=True)
class Features:
    """Of the videos of a split, in its order.

    Attributes:
      values: float32 [N, d].
      readable: bool [N]; False: the video could not be read, and its row is 0.
      cached: they were on disk already.
    """

    values: np.ndarray
    readable: np.ndarray
    cached: bool = False


def mean_token(tokens: jax.Array, config: ViViTConfig) -> jax.Array:
    """The mean of the last encoder's tokens without the class token.

    Args:
      tokens: [B, N, d], one more in front with a class token, as `ViViT(..., features=True)` gives them.
      config: of the model.

    Returns:
      [B, d].
    """
    factorised = config.attention == "factorised_encoder"
    in_front = config.classifier == "token" and (not factorised or config.temporal_layers > 0)
    return tokens[:, int(in_front) :].mean(axis=1)


def feature_step(model: ViViT, kind: str) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
    """`(params, batch) -> {"features": float32 [B, d], "mask": [B], "index": [B]}`, for `jax.jit`.

    `batch["video"]` is uint8 [B, V, T, H, W, 3]; the features of the V views are averaged. The views go through the
    model one after another, so that memory does not grow with their number.

    Args:
      model: its parameters will be given.
      kind: of `settings.FEATURES`.
    """

    def step(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        def one_view(video: jax.Array) -> jax.Array:
            out = model.apply({"params": params}, normalise(video), train=False, features=True)
            found = out["pre_logits"] if kind == "pre_logits" else mean_token(out["tokens"], model.config)
            return found.astype(jnp.float32)

        views = jax.lax.map(one_view, jnp.moveaxis(batch["video"], 1, 0))
        return {"features": jnp.mean(views, axis=0), "mask": batch["mask"], "index": batch["index"]}

    return step


class Extractor:
    """Computes features, or takes them from where they were kept: same weights, same videos, same views.

    Args:
      model, params: the frozen model; `params` on `mesh`.
      name: of the weights, for the log.
      mesh: `jax.set_mesh(mesh)` must be in force when called.
      experiment: batch size, threads.
      spec: how clips are cut.
      settings: kind of features, views.
      workdir: gets `features/SPLIT-KEY.npz`.
    """

    def __init__(
        self,
        model: ViViT,
        params: Any,
        name: str,
        mesh: Any,
        experiment: Experiment,
        spec: ClipSpec,
        settings: ProbeConfig,
        workdir: epath.PathLike,
    ):
        self._params, self._name, self._mesh, self._experiment = params, name, mesh, experiment
        self._spec, self._views = spec, (settings.temporal_views, settings.spatial_views)
        self._folder = epath.Path(workdir) / FOLDER
        self._step = jax.jit(feature_step(model, settings.features), out_shardings=sharding.replicated(mesh))
        fields = model.config.to_dict()
        del fields["num_classes"]
        self._key = {
            "format": _FORMAT,
            "weights": order_sensitive_checksums(params),
            "model": fields,
            "clips": dataclasses.asdict(spec),
            "views": self._views,
            "features": settings.features,
        }

    def __call__(self, split: RecordSplit) -> Features | None:
        """The features of a split; with several processes, None on all but the first.

        Raises:
          ValueError: no video of the split can be read, or a feature is not finite.
        """
        key = json.dumps(self._key | {"videos": fingerprint(split)}, sort_keys=True, default=str)
        path = self._folder / f"{split.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        found = _load(path, key) if jax.process_index() == 0 else None
        # The first process alone looks: the others may not see its disk, and all must do the same.
        if multihost_utils.broadcast_one_to_all(np.asarray(found is not None)):
            logging.info("The features of %s, %d videos, are in %s.", split.name, split.num_videos, path)
            return found
        made = self._compute(split)
        if not made.readable.any():
            raise ValueError(f"none of the {split.num_videos} videos of {split.folder}, {split.name}, can be read")
        wrong = ~np.isfinite(made.values).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"the features of {wrong.sum()} of {split.num_videos} videos of {split.name} are not finite: the "
                f"weights of {self._name} are not sound"
            )
        if jax.process_index() != 0:
            return None
        _save(path, key, made)
        return made

    def _compute(self, split: RecordSplit) -> Features:
        batch_size = self._experiment.evaluation.batch_size
        batches = pipeline.eval_batches(
            split,
            self._spec,
            batch_size=batch_size,
            temporal_views=self._views[0],
            spatial_views=self._views[1],
            rows=sharding.process_rows(self._mesh, batch_size),
            options=dataclasses.replace(self._experiment.data, cache=False),
        )
        values, readable, done, waiting = None, np.zeros(split.num_videos, bool), 0, None

        def keep(made: dict[str, jax.Array] | None) -> None:
            nonlocal values
            if made is None:
                return
            made = jax.device_get(made)
            if values is None:
                width = made["features"].shape[1]
                values = np.zeros((split.num_videos, width), np.float32)
                logging.info(
                    "Features of %s: %d videos x %d numbers, %.1f MiB in memory and on disk; clips: %s",
                    split.name, *values.shape, values.nbytes / 2**20, batches.description,
                )  # fmt: skip
            counts = made["mask"] > 0
            values[made["index"][counts]] = made["features"][counts]
            readable[made["index"][counts]] = True

        with batches:
            for batch in batches:
                made = self._step(self._params, sharding.place_batch(batch, self._mesh, batch_size))
                keep(waiting)  # fetched while the next batch is under way
                waiting = made
                done += 1
                logging.log_every_n_seconds(logging.INFO, "Features of %s: batch %d of %d", 15, split.name, done,
                                            batches.num_batches)  # fmt: skip
        keep(waiting)
        return Features(values, readable)


def fingerprint(split: RecordSplit) -> str:
    """64 hex digits of the videos of a split, by their names, sizes and the checksums of their records.

    Labels have no part in it: features do not depend on them.
    """
    found = hashlib.sha256(f"{split.form} {split.chunk_frames}\n".encode())
    found.update("\n".join(split.video_id.tolist()).encode())
    for field in ("num_frames", "height", "width", "first_chunk", "num_chunks", "chunk_length", "chunk_checksum"):
        found.update(np.ascontiguousarray(getattr(split, field), "<i8").tobytes())
    return found.hexdigest()


def labels_of(split: RecordSplit, which: np.ndarray) -> dict[str, np.ndarray]:
    """The labels of some videos of a split.

    Args:
      split: N videos.
      which: bool [N].

    Returns:
      {head: int32 [M]}; of a head with several labels at once uint8 [M, C], 1 for each label that holds.
    """
    result = {}
    for head, classes in split.heads.items():
        ids = split.labels[head][which]
        if head in split.multi_label:  # [M, L], filled up with -1
            rows, places = np.nonzero(ids >= 0)
            found = np.zeros((len(ids), classes), np.uint8)
            found[rows, ids[rows, places]] = 1
            ids = found
        result[head] = ids
    return result


def _save(path: epath.Path, key: str, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.savez(file, key=np.asarray(key), values=features.values, readable=features.readable)
    storage.write(path, file.getvalue())


def _load(path: epath.Path, key: str) -> Features | None:
    """What `_save` wrote for this very key; None where it is absent, damaged or of another key."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            if str(arrays["key"]) == key:
                return Features(arrays["values"], arrays["readable"], cached=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read (%s); the features are computed anew.", path, error)
    return None
