"""Our parameters as files of others, or as a checkpoint of ours; all or nothing, and nothing is overwritten."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import safetensors.numpy

from vivit_jax.convert import engine, source
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.report import in_words
from vivit_jax.convert.tables import FORMATS, Hints
from vivit_jax.convert.tables.huggingface import ACTIVATIONS
from vivit_jax.convert.tables.sizes import is_image_model
from vivit_jax.models import ViViTConfig
from vivit_jax.utils import storage

Arrays = Mapping[str, np.ndarray]
ClassNames = Mapping[str, Sequence[str]] | None
Record = Mapping[str, Any] | None
# Fields that leave no trace in what a trained model computes.
_OF_TRAINING = (
    *("dropout_rate", "attention_dropout_rate", "stochastic_depth_rate", "stochastic_depth_rescale"),
    *("attention_backend", "dtype", "residual_dtype", "gradient_dtype", "scan_layers", "remat", "remat_temporal"),
)


def write(
    params: Mapping[str, Any],
    path: source.Path,
    format: str,
    config: ViViTConfig,
    class_names: ClassNames = None,
    record: Record = None,
) -> None:
    """Writes; see `vivit_jax.convert.save_params`.

    What `path` becomes:

    * `scenic`: a flat .npz where it ends so; otherwise a file of Flax's msgpack, as Scenic's `checkpoint_0`, with the
      parameters under `params`.
    * `vit_npz`: a flat .npz.
    * `huggingface`: a folder for `from_pretrained`: `model.safetensors`, `config.json`, `preprocessor_config.json`. The
      processor scales pixels to [-1, 1], the range of every model here; the default of their class is [-3, 1].
    * `timm`: a state dict, .safetensors.
    * `orbax`: a run directory whose checkpoint 0 holds the parameters alone, for evaluation, prediction and
      `config.init_from`.

    Raises:
      ValueError, FileExistsError, ConversionError: as `save_params` says.
    """
    source.check_format(format)
    if format not in _WRITERS:
        raise ValueError(f"{format} weights are read, not written; choose one of {', '.join(_WRITERS)}")
    writer, suffixes = _WRITERS[format]
    path = storage.path(path)
    if format == "scenic" and path.suffix == ".npz":
        writer = _write_npz
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{str(path)!r} must end in {' or '.join(suffixes)} for {format} weights")
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another path or remove it")
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    flat = engine.save(flat, FORMATS[format].rows(config))
    their_config = huggingface_config(config, class_names) if format == "huggingface" else None
    if format != "orbax":
        _check_expressible(flat, format, config, {"config": their_config} if their_config else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    if not storage.is_remote(path):
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:
            made = Path(work) / "made"
            writer(flat, made, config, class_names, record)
            shutil.move(made, path)
    elif format == "orbax":
        writer(flat, path, config, class_names, record)  # which marks by itself what is whole in a bucket
    else:
        with tempfile.TemporaryDirectory(prefix="vivit_jax-") as work:
            made = Path(work) / "made"
            writer(flat, made, config, class_names, record)
            (storage.put_tree if made.is_dir() else storage.put)(made, path)


def _check_expressible(flat: Arrays, format: str, config: ViViTConfig, facts: Mapping[str, Any]) -> None:
    """Raises ConversionError where the format would be read back as another model, because it cannot say something."""
    shapes = {name: array.shape for name, array in flat.items()}
    read_back = FORMATS[format].describe(shapes, facts, Hints(target=config))
    wrong = []
    for field in dataclasses.fields(ViViTConfig):
        ours, theirs = getattr(config, field.name), getattr(read_back, field.name)
        if field.name == "temporal_layers" and config.attention != "factorised_encoder":
            continue
        if field.name == "attention_order" and config.attention != "factorised_self_attention":
            continue
        if ours != theirs and field.name not in _OF_TRAINING:
            wrong.append(f"{field.name} = {ours}, which would be read as {theirs}")
    if wrong:
        raise ConversionError(f"{format} cannot express this model ({in_words(config)})", wrong)


def huggingface_config(config: ViViTConfig, class_names: ClassNames = None) -> dict[str, Any]:
    """`config.json` of Hugging Face for Model 1 or an image ViT.

    Raises:
      ConversionError: a pre-logits layer or a logit cap, which their classes do not have.
    """
    wrong = []
    if config.representation_size:
        wrong.append(f"representation_size = {config.representation_size}: their classifier has no such layer")
    if config.attention_logit_cap:
        wrong.append(f"attention_logit_cap = {config.attention_logit_cap}: theirs has none")
    if wrong:
        raise ConversionError(f"Hugging Face cannot express this model ({in_words(config)})", wrong)
    image = is_image_model(config)
    spelling = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs in ("gelu", "gelu_fast")}
    fields: dict[str, Any] = {
        "model_type": "vit" if image else "vivit",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": spelling[config.activation],
        "layer_norm_eps": config.layer_norm_eps,
        "qkv_bias": config.qkv_bias,
        # A pair where frames are not square, which transformers reads from 5.10 on.
        "image_size": config.to_dict()["image_size"],
        "num_channels": config.in_channels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": config.param_dtype,
    }
    if image:
        fields["patch_size"] = config.tubelet_size[1]
        names = ("ViTModel", "ViTForImageClassification")
    else:
        fields |= {"num_frames": config.num_frames, "tubelet_size": list(config.tubelet_size)}
        names = ("VivitModel", "VivitForVideoClassification")
    fields["architectures"] = [names[config.num_classes is not None]]
    if config.num_classes is not None:
        labels = _class_names(config, class_names)["label"]
        fields["id2label"] = {str(i): label for i, label in enumerate(labels)}
        fields["label2id"] = {label: i for i, label in enumerate(labels)}
    return fields


def preprocessor_config(config: ViViTConfig) -> dict[str, Any]:
    """`preprocessor_config.json`: short side 256/224 of the crop, centre crop, pixels to [-1, 1] as x / 127.5 - 1."""
    height, width = config.image_shape
    return {
        "image_processor_type": "VivitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) * 256 / 224)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "do_normalize": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _class_names(config: ViViTConfig, class_names: ClassNames) -> dict[str, list[str]]:
    """head -> the names of its classes, 'LABEL_0' and so on where none were given."""
    names = {}
    for head, classes in config.heads:
        head = head or "label"
        names[head] = list((class_names or {}).get(head) or [f"LABEL_{i}" for i in range(classes)])
        if len(names[head]) != classes:
            raise ValueError(f"{len(names[head])} class names were given for {head}, which has {classes} classes")
    return names


def _write_npz(flat: Arrays, path: Path, config: ViViTConfig, names: ClassNames, record: Record) -> None:
    with path.open("wb") as file:
        np.savez(file, **flat)


def _write_scenic(flat: Arrays, path: Path, config: ViViTConfig, names: ClassNames, record: Record) -> None:
    tree = flax.traverse_util.unflatten_dict({k: np.ascontiguousarray(v) for k, v in flat.items()}, sep="/")
    state = {"global_step": 0, "model_state": {}, "params": tree}
    path.write_bytes(flax.serialization.msgpack_serialize(state))


def _write_torch(flat: Arrays, path: Path, config: ViViTConfig, names: ClassNames, record: Record) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def _write_huggingface(flat: Arrays, path: Path, config: ViViTConfig, names: ClassNames, record: Record) -> None:
    path.mkdir()
    _write_torch(flat, path / "model.safetensors", config, names, record)
    (path / "config.json").write_text(json.dumps(huggingface_config(config, names), indent=2) + "\n")
    if not is_image_model(config):
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(config), indent=2) + "\n")


def _write_orbax(flat: Arrays, path: Path, config: ViViTConfig, names: ClassNames, record: Record) -> None:
    from vivit_jax import checkpoint as checkpointing  # here, so that reading other formats does not wait for Orbax

    model = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    meta = {
        "config": {**(record or {}), "model": model},
        "heads": {head or "label": classes for head, classes in config.heads},
        "class_names": _class_names(config, names),
        "data": {},
    }
    params = flax.traverse_util.unflatten_dict(dict(flat), sep="/")
    with checkpointing.Checkpoints(path / checkpointing.FOLDER) as checkpoints:
        checkpoints.save(0, {"params": params}, meta)


_Writer = Callable[[Arrays, Path, ViViTConfig, ClassNames, Record], None]
# format -> (how, what the path must end in)
_WRITERS: dict[str, tuple[_Writer, tuple[str, ...]]] = {
    "scenic": (_write_scenic, ()),
    "vit_npz": (_write_npz, (".npz",)),
    "huggingface": (_write_huggingface, ()),
    "timm": (_write_torch, (".safetensors",)),
    "orbax": (_write_orbax, ()),
}
