"""Ships a trained model in a format that needs nothing of this package.

    python -m vivit_jax.export --workdir=runs/k400 --output=shipped --format=stablehlo

The folder has the model; `model.json`, its labels and preprocessing; `example.npz`, clips and their logits, to check a
loaded model; and `README.md`, a model card that shows how to load it. docs/export.md describes the formats.
"""

import dataclasses
import json

import flax
import jax
import numpy as np
from etils import epath

from vivit_jax import __version__, sharding
from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.export import card
from vivit_jax.export.formats import FORMATS, Shipped
from vivit_jax.models import inference
from vivit_jax.predict import restore
from vivit_jax.utils import storage


def export(checkpoint: storage.PathLike, output: storage.PathLike, format: str, weights: str = "params") -> None:
    """Writes the folder `output`, which must not exist, in a format of `FORMATS`.

    `checkpoint` and `weights` are those of `vivit_jax.predict.Predictor`. Raises errors of `vivit_jax.predict.restore`,
    CheckpointError for a model without classifier, ValueError where the format cannot express the model.
    """
    output = storage.path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output or remove it")
    model, params, metadata, path = restore(checkpoint, sharding.make_mesh(devices=jax.local_devices()[:1]), weights)
    if not metadata["heads"]:
        raise checkpointing.CheckpointError(f"{path} holds a model without a classifier, which has no labels")
    # Plain attention and a loop over the layers: one program for all platforms.
    config = inference.inference_config(model.config, "float32")
    config = dataclasses.replace(config, attention_backend="xla", scan_layers=True, remat="none", remat_temporal=None)
    experiment = Experiment.from_config(metadata["config"])
    preprocessing = Preprocessing.of_checkpoint(metadata, config)
    sigmoid = metadata["heads"] if experiment.loss.name == "sigmoid" else metadata.get("multi_label", ())
    info = {
        "model": config.name,
        "labels": metadata["class_names"],
        "scores": {head: "sigmoid" if head in sigmoid else "softmax" for head in metadata["heads"]},
        "preprocessing": preprocessing.to_dict() | {"assumed": preprocessing.assumed},
        "views": {name: getattr(experiment.evaluation, name) for name in ("temporal_views", "spatial_views")},
        "versions": {"vivit_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
    }
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    shipped = Shipped(config, flat, preprocessing, info, json.dumps(info, indent=1, ensure_ascii=False))
    clips = np.random.default_rng(0).integers(0, 256, (2, *config.video_shape), np.uint8)
    logits = jax.jit(shipped.logits)(flat, clips)
    output.parent.mkdir(parents=True, exist_ok=True)
    with storage.written(output) as folder:
        FORMATS[format](shipped, folder)
        np.savez(folder / "example.npz", frames=clips, **logits)
        (folder / "model.json").write_text(shipped.json, "utf-8")
        (folder / "README.md").write_text(card.render(shipped, format, metadata, epath.Path(path), weights), "utf-8")
