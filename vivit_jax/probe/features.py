"""Features of the videos of a split, computed once by the frozen model and cached on disk."""

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
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.evaluation.evaluator import open_batches, run_batches
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.probe.config import ProbeConfig
from vivit_jax.train_step import map_views
from vivit_jax.utils import storage

FOLDER = "features"
_FORMAT = 1  # of the files and of the computation; raise it to invalidate older files


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a split, in its order.

    Attributes:
      values: float32 [N, d].
      readable: bool [N]; False where the video could not be read, and its row is 0.
      cached: whether they were read from disk.
    """

    values: np.ndarray
    readable: np.ndarray
    cached: bool = False


def mean_token(tokens: jax.Array, config: ViViTConfig) -> jax.Array:
    """Averages the tokens [B, N, d] of the last encoder, without a class token; returns [B, d]."""
    has_time_encoder = config.attention != "factorised_encoder" or config.temporal_layers > 0
    has_class_token = config.classifier == "token" and has_time_encoder
    return tokens[:, int(has_class_token) :].mean(axis=1)


def feature_step(model: ViViT, kind: str) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
    """Returns `(params, batch) -> {"features": float32 [B, d], "mask": [B], "index": [B]}`, averaged over the views.

    Args:
      model: of the parameters.
      kind: one of `config.FEATURES`.
    """

    def step(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        def features_of(clips: jax.Array) -> jax.Array:
            out = model.apply({"params": params}, clips, train=False, features=True)
            features = out["pre_logits"] if kind == "pre_logits" else mean_token(out["tokens"], model.config)
            return features.astype(jnp.float32)

        features = jnp.mean(map_views(features_of, batch["video"]), axis=0)
        return {"features": features, "mask": batch["mask"], "index": batch["index"]}

    return step


class Extractor:
    """Computes the features of a split, or reads them from `WORKDIR/features/SPLIT-KEY.npz`.

    The key is a hash of the weights, the model, the videos and the views.

    Args:
      model, params: the frozen model; `params` on `mesh`.
      name: of the weights, for messages.
      mesh: `jax.set_mesh(mesh)` must be active in calls.
      experiment: batch size and pipeline options.
      spec: how clips are cut.
      settings: kind of features, views.
      workdir: receives the files.
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
        model_fields = model.config.to_dict()
        del model_fields["num_classes"]
        self._key = {
            "format": _FORMAT,
            "weights": order_sensitive_checksums(params),
            "model": model_fields,
            "clips": dataclasses.asdict(spec),
            "views": self._views,
            "features": settings.features,
        }

    def __call__(self, split: RecordSplit) -> Features | None:
        """Returns the features of a split; None on all processes but the first.

        Raises:
          ValueError: no video of the split can be read, or a feature is not finite.
        """
        key = json.dumps(self._key | {"videos": fingerprint(split)}, sort_keys=True, default=str)
        path = self._folder / f"{split.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        features = _read(path, key) if jax.process_index() == 0 else None
        # Only the first process may see the disk, and all must take the same branch.
        if multihost_utils.broadcast_one_to_all(np.asarray(features is not None)):
            logging.info("The features of %s, %d videos, are in %s.", split.name, split.num_videos, path)
            return features
        features = self._compute(split)
        if not features.readable.any():
            raise ValueError(f"none of the {split.num_videos} videos of {split.folder}, {split.name}, can be read")
        not_finite = ~np.isfinite(features.values).all(axis=1)
        if not_finite.any():
            raise ValueError(
                f"the features of {not_finite.sum()} of {split.num_videos} videos of {split.name} are not finite: the "
                f"weights of {self._name} are not sound"
            )
        if jax.process_index() != 0:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez(file, key=np.asarray(key), values=features.values, readable=features.readable)
        storage.write(path, file.getvalue())
        return features

    def _compute(self, split: RecordSplit) -> Features:
        values, readable = None, np.zeros(split.num_videos, bool)
        with open_batches(split, self._spec, self._views, self._experiment, self._mesh) as batches:
            logging.info("Features of %s: %d videos, %s", split.name, split.num_videos, batches.description)
            batch_size = self._experiment.evaluation.batch_size
            outputs = run_batches(self._step, self._params, batches, self._mesh, batch_size)
            for number, batch in enumerate(map(jax.device_get, outputs), start=1):
                if values is None:
                    values = np.zeros((split.num_videos, batch["features"].shape[1]), np.float32)
                counted = batch["mask"] > 0
                values[batch["index"][counted]] = batch["features"][counted]
                readable[batch["index"][counted]] = True
                logging.log_every_n_seconds(
                    logging.INFO, "Features of %s: batch %d of %d", 15, split.name, number, batches.num_batches
                )
        return Features(values, readable)


def fingerprint(split: RecordSplit) -> str:
    """Hashes the videos of a split (names, sizes, checksums of the records), but not their labels; 64 hex digits."""
    digest = hashlib.sha256(f"{split.form} {split.chunk_frames}\n".encode())
    digest.update("\n".join(split.video_id.tolist()).encode())
    for field in ("num_frames", "height", "width", "first_chunk", "num_chunks", "chunk_length", "chunk_checksum"):
        digest.update(np.ascontiguousarray(getattr(split, field), "<i8").tobytes())
    return digest.hexdigest()


def labels_of(split: RecordSplit, selected: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the labels of the videos selected by bool [N].

    Returns:
      {head: int32 [M]}; of a multi-label head uint8 [M, C], 1 where a class is present.
    """
    result = {}
    for head, classes in split.heads.items():
        ids = split.labels[head][selected]
        if head in split.multi_label:  # [M, L], padded with -1
            rows, columns = np.nonzero(ids >= 0)
            present = np.zeros((len(ids), classes), np.uint8)
            present[rows, ids[rows, columns]] = 1
            ids = present
        result[head] = ids
    return result


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
