"""Ships a trained model in a format that needs nothing of this package.

    python -m vivit_jax.export --workdir=runs/k400 --output=shipped --format=stablehlo

The folder has the model; `model.json`, its labels and preprocessing; `example.npz`, clips and their logits, to check a
loaded model; and `README.md`, a model card that shows how to load it. docs/export.md describes the formats.
"""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jinja2
import numpy as np
from etils import epath

from vivit_jax import __version__, sharding
from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.config.sections import EMA
from vivit_jax.convert import describe_model
from vivit_jax.export.formats import FORMATS, Shipped
from vivit_jax.models import count_parameters, inference
from vivit_jax.predict import restore
from vivit_jax.report import load
from vivit_jax.utils import storage
from vivit_jax.utils.class_names import listed

_METRICS = ("top1", "top5", "mean_class_accuracy", "mean_average_precision")
_PATHS = ("dir", "path", "annotations", "list_file", "compilation_cache")  # fields of a config that name local files


def export(checkpoint: storage.PathLike, output: storage.PathLike, format: str, weights: str = "params") -> None:
    """Writes the folder `output`, which must not exist, in a format of `FORMATS`.

    `checkpoint` and `weights` are those of `vivit_jax.predict.Predictor`. Raises errors of `vivit_jax.predict.restore`,
    CheckpointError for a model without classifier, FileExistsError, ValueError for one that the format cannot express.
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
    with jax.default_matmul_precision("highest"):  # not in products of TF32 or bfloat16
        logits = jax.jit(shipped.logits)(flat, clips)
    output.parent.mkdir(parents=True, exist_ok=True)
    with storage.written(output) as folder:
        FORMATS[format](shipped, folder)
        np.savez(folder / "example.npz", frames=clips, **logits)
        (folder / "model.json").write_text(shipped.json, "utf-8")
        (folder / "README.md").write_text(card(shipped, format, metadata, epath.Path(path), weights), "utf-8")


def card(model: Shipped, format: str, metadata: Mapping[str, Any], step: epath.Path, weights: str) -> str:
    """Returns the model card, from the checkpoint `step` with this metadata and the files of its run, if any.

    It is Markdown with the metadata of Hugging Face; `templates/card.md.j2` holds its layout.
    """
    experiment, run = Experiment.from_config(metadata["config"]), None
    with contextlib.suppress(OSError, ValueError):
        run = load.read_run(step.parents[1]) if step.parent.name == checkpointing.FOLDER else None
    evaluation = run.evaluation if run else {}
    measured = run.metrics if epath.Path(evaluation.get("checkpoint", "")).parts[-2:] == step.parts[-2:] else {}
    measured = {name: value for name, value in measured.items() if name.startswith(EMA) == (weights == "ema")}
    results = {n.removeprefix(EMA): v for n, v in measured.items() if n.endswith(_METRICS) and v is not None}
    changed = [row for row in (run.changed_fields() if run else ()) if not row[0].endswith(_PATHS)]
    dates = [datetime.datetime.fromtimestamp(time, datetime.UTC).date() for time in run.times] if run else []
    loader, undefined = jinja2.PackageLoader("vivit_jax.export", "templates"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=undefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("card.md.j2").render(
        **{"info": model.info, "format": format, "weights": weights, "experiment": experiment, "metadata": metadata},
        **{"evaluation": evaluation, "results": results, "dates": dates, "changed": changed},
        description=describe_model(model.config),
        parameters=count_parameters(model.config),
        classes={head: listed(names) for head, names in model.info["labels"].items()},
        today=datetime.datetime.now(datetime.UTC).date(),
    )
