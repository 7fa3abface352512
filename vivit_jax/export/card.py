"""The model card, Markdown with the metadata of Hugging Face; `templates/card.md.j2` holds its layout."""

import contextlib
import datetime
from collections.abc import Mapping
from typing import Any

import jinja2
from etils import epath

from vivit_jax.checkpoint import FOLDER
from vivit_jax.config.experiment import Experiment
from vivit_jax.convert import describe_model
from vivit_jax.export.formats import Shipped
from vivit_jax.models import count_parameters
from vivit_jax.report import load
from vivit_jax.utils.class_names import listed

_METRICS = ("top1", "top5", "mean_class_accuracy", "mean_average_precision")
_PATHS = ("dir", "path", "annotations", "list_file", "compilation_cache")  # fields of a config that name local files


def render(model: Shipped, format: str, metadata: Mapping[str, Any], step: epath.Path, weights: str) -> str:
    """Returns the card of a model from the checkpoint `step` with this metadata, and the files of its run, if any."""
    experiment, run = Experiment.from_config(metadata["config"]), None
    with contextlib.suppress(OSError, ValueError):
        run = load.read_run(step.parents[1]) if step.parent.name == FOLDER else None
    evaluation = run.evaluation if run and weights == "params" else {}
    if epath.Path(evaluation.get("checkpoint", "")).parts[-3:] != step.parts[-3:]:
        evaluation = {}  # of other weights
    results = {n: v for n, v in evaluation.get("metrics", {}).items() if n.endswith(_METRICS) and v is not None}
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
