"""Writers of weight files and of our checkpoints; a file appears whole or not at all, and nothing is overwritten."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import safetensors.numpy

from vivit_jax.convert import engine, source
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.report import describe_model
from vivit_jax.convert.tables import FORMATS, Hints
from vivit_jax.convert.tables.rows import NAMES
from vivit_jax.convert.tables.sizes import is_image_model
from vivit_jax.models import ViViTConfig
from vivit_jax.utils import storage
from vivit_jax.utils.class_names import placeholders

Arrays = Mapping[str, np.ndarray]
ClassNames = Mapping[str, Sequence[str]] | None
Record = Mapping[str, Any] | None
_SUFFIXES = {"vit_npz": ".npz", "timm": ".safetensors"}  # that the path must have
# Fields that do not change what a trained model computes.
_TRAINING_FIELDS = (
    *("dropout_rate", "attention_dropout_rate", "stochastic_depth_rate", "stochastic_depth_rescale"),
    "temporal_position_std",
    *("attention_backend", "dtype", "residual_dtype", "gradient_dtype", "scan_layers", "remat", "remat_temporal"),
)


def to_flat(params: Mapping[str, Any], format: str, config: ViViTConfig) -> dict[str, np.ndarray]:
    """Returns nested parameters of `config` under the names of a format: the exact inverse of `load_params`."""
    source.check_format(format)
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    return engine.save(flat, FORMATS[format].rows(config))


def save_params(
    params: Mapping[str, Any],
    path: source.Path,
    format: str,
    config: ViViTConfig,
    class_names: ClassNames = None,
    record: Record = None,
    preprocessing: Record = None,
) -> None:
    """Writes nested parameters of `config`; `load_params` reads all formats. `path`, which must not exist, becomes:

    * `scenic`: a flat .npz where it ends so, otherwise Flax msgpack, as Scenic's `checkpoint_0`.
    * `vit_npz`: a flat .npz; `timm`: a state dict, .safetensors.
    * `huggingface`: a folder for `from_pretrained`: `model.safetensors`, `config.json`, `preprocessor_config.json`.
    * `orbax`: a run directory whose checkpoint 0 holds the parameters alone, to evaluate, predict and initialise from.

    `class_names` is {head: names by class id}, 'label' for an only head; `record` the config of a run
    (`Experiment.to_dict`), stored in the checkpoint with `config` as its model, and `preprocessing` that of its
    checkpoint. ConversionError where the format cannot express the model or has no name for a parameter.
    """
    path = storage.path(path)
    if _SUFFIXES.get(format, path.suffix) != path.suffix:
        raise ValueError(f"{str(path)!r} must end in {_SUFFIXES[format]} for {format} weights")
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another path or remove it")
    flat = to_flat(params, format, config)
    metadata = {"config": huggingface_config(config, class_names)} if format == "huggingface" else {}
    if format != "orbax":
        _check_expressible(flat, format, config, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Orbax writes to a bucket by itself, and marks the checkpoint as complete.
    by_orbax = format == "orbax" and storage.is_remote(path)
    with contextlib.nullcontext(path) if by_orbax else storage.written(path) as written:
        if format == "orbax":
            _write_checkpoint(flat, written, config, class_names, record, preprocessing)
        elif format == "huggingface":
            written.mkdir()
            safetensors.numpy.save_file(flat, written / "model.safetensors", metadata={"format": "pt"})
            files = {"config.json": metadata["config"]}
            if not is_image_model(config):
                files["preprocessor_config.json"] = preprocessor_config(config, preprocessing)
            for name, content in files.items():
                (written / name).write_text(json.dumps(content, indent=2) + "\n")
        elif format == "timm":
            safetensors.numpy.save_file(flat, written, metadata={"format": "pt"})
        elif path.suffix == ".npz":
            with written.open("wb") as file:  # given a path, NumPy would append a suffix
                np.savez(file, **flat)
        else:
            tree = flax.traverse_util.unflatten_dict(flat, sep="/")
            state = {"global_step": 0, "model_state": {}, "params": tree}
            written.write_bytes(flax.serialization.msgpack_serialize(state))


def _check_expressible(flat: Arrays, format: str, config: ViViTConfig, metadata: Mapping[str, Any]) -> None:
    """Raises ConversionError where the written file would be read as another model."""
    shapes = {name: array.shape for name, array in flat.items()}
    read_back = FORMATS[format].describe(shapes, metadata, Hints(target=config))
    only = {"temporal_layers": "factorised_encoder", "attention_order": "factorised_self_attention"}
    ignored = {*_TRAINING_FIELDS, *(field for field, attention in only.items() if config.attention != attention)}
    problems = [
        f"{field.name} = {getattr(config, field.name)}, which would be read as {getattr(read_back, field.name)}"
        for field in dataclasses.fields(ViViTConfig)
        if field.name not in ignored and getattr(config, field.name) != getattr(read_back, field.name)
    ]
    if problems:
        raise ConversionError(f"{format} cannot express this model ({describe_model(config)})", problems)


def huggingface_config(config: ViViTConfig, class_names: ClassNames = None) -> dict[str, Any]:
    """Returns the `config.json` of Hugging Face for Model 1 or an image ViT, without pre-logits layer."""
    if size := config.representation_size:
        problem = f"representation_size = {size}: it has no pre-logits layer"
        raise ConversionError(f"Hugging Face cannot express this model ({describe_model(config)})", [problem])
    image = is_image_model(config)
    fields: dict[str, Any] = {
        "model_type": "vit" if image else "vivit",
        **{name: getattr(config, ours) for name, ours in NAMES["huggingface"]["config"].items()},
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_fast"}[config.activation],
        # A pair where frames are not square, which needs transformers 5.10.
        "image_size": config.to_dict()["image_size"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if image:
        _, height, width = config.tubelet_size
        fields["patch_size"] = height if height == width else [height, width]
    else:
        fields |= {"num_frames": config.num_frames, "tubelet_size": list(config.tubelet_size)}
    architecture = ("ViTModel", "ViTForImageClassification") if image else ("VivitModel", "VivitForVideoClassification")
    fields["architectures"] = [architecture[config.num_classes is not None]]
    if config.num_classes is not None:
        labels = _class_names(config, class_names)["label"]
        fields["id2label"] = {str(i): label for i, label in enumerate(labels)}
        fields["label2id"] = {label: i for i, label in enumerate(labels)}
    return fields


def preprocessor_config(config: ViViTConfig, preprocessing: Record = None) -> dict[str, Any]:
    """Returns `preprocessor_config.json`: short side (if not given 256/224 of the crop), centre crop, [-1, 1].

    That is the range of all our models; the default of the processor's class is [-3, 1].
    """
    height, width = config.image_shape
    short_side = preprocessing["short_side"] if preprocessing else round(min(height, width) * 256 / 224)
    size, crop_size = {"shortest_edge": short_side or min(height, width)}, {"height": height, "width": width}
    content = json.loads(Path(__file__).with_name("preprocessor_config.json").read_text(encoding="utf-8"))
    return content | {"do_resize": short_side is not None, "size": size, "crop_size": crop_size}


def _class_names(config: ViViTConfig, class_names: ClassNames) -> dict[str, list[str]]:
    """Returns {head: names of its classes}, 'LABEL_0' and so on where none were given."""
    names = {}
    for name, classes in config.heads:
        head = name or "label"
        names[head] = list((class_names or {}).get(head) or placeholders(classes))
        if len(names[head]) != classes:
            raise ValueError(f"{len(names[head])} class names were given for {head}, which has {classes} classes")
    return names


def _write_checkpoint(
    flat: Arrays, path: Any, config: ViViTConfig, names: ClassNames, record: Record, preprocessing: Record
) -> None:
    from vivit_jax import checkpoint as checkpointing  # here: it imports Orbax, which other formats do not need
    from vivit_jax.config.experiment import CONFIG_FILE, Experiment
    from vivit_jax.config.preprocessing import KEY, usual_input

    model = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    record = {"input": usual_input(config), **(record or {})}
    pretrain = {**record.get("pretrain", {}), "mask_ratio": 0.0}  # the decoder was left out
    checkpoint_metadata = {
        "config": Experiment.from_config({**record, "model": model, "pretrain": pretrain}).to_dict(),
        "heads": {head or "label": classes for head, classes in config.heads},
        "class_names": _class_names(config, names),
        "data": {},
        **({KEY: preprocessing} if preprocessing else {}),
    }
    params = flax.traverse_util.unflatten_dict(dict(flat), sep="/")
    with checkpointing.Checkpoints(path / checkpointing.FOLDER) as checkpoints:
        checkpoints.save(0, {"params": params}, checkpoint_metadata)
    (path / CONFIG_FILE).write_text(json.dumps(checkpoint_metadata["config"], indent=2))
