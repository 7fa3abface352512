"""The model of a prediction, from a checkpoint of a run or from pretrained weights."""

from importlib import resources
from typing import Any

import flax.traverse_util
import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.preprocessing import usual_input
from vivit_jax.convert import describe_model, processor
from vivit_jax.convert.source import open_weights
from vivit_jax.convert.tables import Hints
from vivit_jax.evaluation.evaluate import named_classes, restore_for_inference
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.utils import class_names

_KINETICS = (400, 600)  # numbers of classes of the data sets whose class names are in `classes/`


def restore(checkpoint: epath.PathLike, mesh: Any, weights: str) -> tuple[ViViT, Any, dict[str, Any], str]:
    """Returns (model, parameters, metadata, path) as `restore_for_inference`, also of weights that `convert` reads.

    Raises CheckpointError for a damaged checkpoint, or a path that does not exist or is an empty folder; FileError,
    ConversionError or ValueError for weights that are damaged, or not those of a ViViT.
    """
    path = epath.Path(checkpoint)
    try:
        checkpointing.locate(path)
    except checkpointing.CheckpointError:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise
        return _read(path, mesh)
    model, params, metadata, step = restore_for_inference(path, mesh, weights=weights)
    return model, params, metadata, str(step)


def _read(path: epath.Path, mesh: Any) -> tuple[ViViT, Any, dict[str, Any], str]:
    with open_weights(path) as weights:
        try:
            config = weights.model_config(Hints())
        except ValueError as error:  # what only flags can tell
            convert = f"python -m vivit_jax.convert --from={path} --to=RUN --format=orbax"
            raise ValueError(f"{error}\nconvert them first, with that flag, and predict with RUN: {convert}") from None
        names, where, stored = weights.class_names(config), weights.container.where, weights.container.metadata
        pixels = processor.read(stored, config.in_channels)
        params = flax.traverse_util.unflatten_dict(weights.load(config).params, sep="/")
    if pixels is not None and not pixels.is_ours:
        logging.warning("%s: %s, with python -m vivit_jax.convert", where, pixels.warning("--"))
    fields = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    heads = {head or "label": classes for head, classes in config.heads}
    for head, classes in heads.items():
        if classes in _KINETICS and (head not in names or class_names.are_placeholders(names[head])):
            text = resources.files(__package__).joinpath(f"classes/kinetics{classes}.txt").read_text(encoding="utf-8")
            names[head] = text.splitlines()
            logging.warning(
                "%s does not name its %d classes: taken for those of Kinetics-%d in alphabetical order, which was not "
                "checked.", where, classes, classes,
            )  # fmt: skip
    config_fields = {"input": usual_input(config, stored.get("preprocessor")), "model": fields}
    metadata = {"config": config_fields, "heads": heads, "data": {}}
    metadata["class_names"] = named_classes({"heads": heads, "class_names": names}, where)
    # `auto` backends and dtypes are those of a run.
    model = ViViT(Experiment.from_config(metadata["config"]).model_config(heads))
    logging.info("%s: %s", where, describe_model(config))
    shardings = sharding.state_sharding(mesh, {"params": abstract_params(model.config)})["params"]
    return model, jax.device_put(params, shardings), metadata, str(path)
