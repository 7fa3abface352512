"""Weights of others, in and out.

    load_params(source, config=config)        the weights of the very model, exactly
    load_model(source)                        the weights and the model that they are of
    initialise(source, config, options)       fitted to any of our models (section 3.4), with a report of every leaf
    image_to_video(image_params, config)      the same from parameters in memory
    save_params(params, path, format, config) out again

`source` is a file, a folder or a mapping; formats are found by looking. Names are in `vivit_jax.convert.tables`, one
engine applies them both ways. `python -m vivit_jax.convert` does the same from the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from vivit_jax.config.init_from import InitFrom
from vivit_jax.convert import engine
from vivit_jax.convert.containers.open import FileError
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.image_to_video import adapt, image_to_video
from vivit_jax.convert.report import Entry, Report, in_words
from vivit_jax.convert.source import Path, Source, check_format, find_format, understand
from vivit_jax.convert.tables import FORMATS, Hints, native
from vivit_jax.convert.tables.sizes import is_image_model
from vivit_jax.models import ViViTConfig
from vivit_jax.models.config import INHERITED_FIELDS

__all__ = [
    "FORMATS",
    "INHERITED_FIELDS",
    "ConversionError",
    "Entry",
    "FileError",
    "InitFrom",
    "Initialisation",
    "Report",
    "find_format",
    "image_to_video",
    "in_words",
    "initialise",
    "load_model",
    "load_params",
    "model_for",
    "save_params",
    "to_flat",
]


def load_params(
    source: Source, format: str | None = None, *, config: ViViTConfig, prefix: str | None = None
) -> dict[str, Any]:
    """Weights of the very model `config`, exactly.

    Args:
      source: a file or folder in any known container, or a mapping name -> array (nested mappings are flattened
        with '/').
      format: a key of `FORMATS`; None finds it by the names.
      config: the model to fill. An image model is one with `tokenizer="uniform_frames"`, one frame and tubelets of one.
      prefix: look at names that begin so and at nothing else, and take it away. None takes away what stands
        in front of every parameter ('params/', 'optimizer/target/').

    Returns:
      The nested dict of NumPy arrays for `ViViT(config).apply({"params": ...})`, in the dtype of the
      parameters: half precision is widened.

    Raises:
      FileNotFoundError: no such file.
      FileError: a file that cannot be read: cut off, damaged, a shard missing, not weights at all.
      ValueError: its format is unknown, only some of its names have a known prefix, or the format has no such model.
      ConversionError: a leaf that is unknown, missing, of another shape, or not finite; all of them at once.
    """
    with understand(source, format, prefix) as opened:
        return flax.traverse_util.unflatten_dict(opened.load(config).params, sep="/")


def load_model(
    source: Source,
    format: str | None = None,
    *,
    prefix: str | None = None,
    grid: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    like: ViViTConfig | None = None,
) -> tuple[ViViTConfig, dict[str, Any]]:
    """Weights and the model that they are of, as the shapes, and what lies beside them, tell.

    Args:
      source, format, prefix: as `load_params`.
      grid: (n_t, n_h, n_w), or (n_h, n_w) of an image model, where the positions can be read in several ways.
      num_heads: where the file does not say.
      like: a model that decides where several readings are left.

    Returns:
      (config, nested parameters). An image model has `tokenizer="uniform_frames"` and one frame.

    Raises:
      As `load_params`; ValueError where the model cannot be known.
    """
    with understand(source, format, prefix) as opened:
        config = opened.model(Hints(grid, num_heads, like))
        return config, flax.traverse_util.unflatten_dict(opened.load(config).params, sep="/")


@dataclasses.dataclass(frozen=True)
class Initialisation:
    """What `initialise` hands back.

    Attributes:
      config: the model, with what the weights decide (activation, epsilon, biases, pre-logits layer).
      params: its parameters, nested, NumPy.
      report: what became of every leaf.
    """

    config: ViViTConfig
    params: dict[str, Any]
    report: Report


def initialise(
    source: Source,
    config: ViViTConfig,
    options: InitFrom | None = None,
    *,
    seed: int = 0,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Initialisation:
    """A model started from the weights of any other, image or video, at any size (section 3.4).

    Args:
      source: as `load_params`.
      config: the model to fill; activation, LayerNorm epsilon, biases and the pre-logits layer follow the weights.
      options: the choices of section 3.4; `options.path` is not looked at.
      seed: of the leaves that start as from scratch.
      class_names: {head: names by class id} of the model, 'label' for an only head; None where they are not known.

    Raises:
      FileNotFoundError, FileError, ValueError: as `load_params`.
      ConversionError: whatever differs and cannot be converted, all of it at once; nothing is half loaded.
    """
    options = options or InitFrom()
    with understand(source, options.format, options.prefix) as opened:
        found = opened.model(Hints(options.grid, options.num_heads, config))
        loaded = opened.load(dataclasses.replace(found, dtype=config.dtype), strict=False)
        if options.pixel_mean is None and is_image_model(found):
            mean, std = opened.pixels(found.in_channels)
            options = dataclasses.replace(options, pixel_mean=mean, pixel_std=std)
    config, changed = follow(found, config, options)
    params, report = adapt(
        flax.traverse_util.unflatten_dict(loaded.params, sep="/"),
        found,
        config,
        options,
        seed=seed,
        origin=loaded.origin,
        where=opened.weights.where,
        class_names=(native.class_names(opened.weights.facts), class_names or {}),
    )
    entries = [_with_dtype(entry, loaded.stored_as) for entry in report.entries]
    entries += [Entry(name, "dropped", why) for name, why in loaded.dropped.items()]
    target = report.target + (f" [following the weights: {', '.join(changed)}]" if changed else "")
    return Initialisation(config, params, dataclasses.replace(report, entries=tuple(entries), target=target))


def _with_dtype(entry: Entry, stored_as: Mapping[str, set[str]]) -> Entry:
    """Says where the numbers were stored in another precision."""
    if entry.outcome in ("loaded", "resized") and entry.name in stored_as:
        return dataclasses.replace(entry, how=f"{entry.how} (stored as {', '.join(sorted(stored_as[entry.name]))})")
    return entry


def model_for(source: Source, config: ViViTConfig, options: InitFrom) -> ViViTConfig:
    """The config that `initialise` would return, from the names and shapes of the weights alone.

    Raises:
      As `initialise`, for what names and shapes show.
    """
    with understand(source, options.format, options.prefix) as opened:
        found = opened.model(Hints(options.grid, options.num_heads, config))
    return follow(found, config, options)[0]


def to_flat(params: Mapping[str, Any], format: str, config: ViViTConfig) -> dict[str, np.ndarray]:
    """Our parameters under the names of a format: the inverse of `load_params`, exact to the bit.

    Args:
      params: the nested dict of parameters.
      format: a key of `FORMATS`.
      config: the model that the parameters belong to.

    Returns:
      Their name -> array.

    Raises:
      ValueError: an unknown format, or one that has no such model.
      ConversionError: parameters that the format has no name for.
    """
    check_format(format)
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    return engine.save(flat, FORMATS[format].rows(config))


def save_params(
    params: Mapping[str, Any],
    path: Path,
    format: str,
    config: ViViTConfig,
    class_names: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes our parameters in a format of others, or as a checkpoint of ours; `load_params` reads all of them back.

    Args:
      params: the nested dict of parameters.
      path: where to, see `vivit_jax.convert.writers`: by format a file or a folder.
      format: a key of `FORMATS`.
      config: the model that the parameters belong to.
      class_names: head -> names of its classes, for formats that keep them ('label' for an only head).
      record: the config of the run that the parameters are from, as JSON (`Experiment.to_dict`), for a checkpoint of
        ours to keep; its model is replaced by `config`.

    Raises:
      ValueError: an unknown format, one that has no such model, or a path that does not fit it.
      FileExistsError: something is there already.
      ConversionError: parameters that the format has no name for.
    """
    from vivit_jax.convert import writers

    writers.write(params, path, format, config, class_names, record)


def follow(source: ViViTConfig, config: ViViTConfig, options: InitFrom) -> tuple[ViViTConfig, list[str]]:
    """The config with what the weights decide: activation, LayerNorm epsilon, biases, pre-logits layer.

    Args:
      source: the model of the weights.
      config: the model wanted.
      options: `pre_logits="load"` takes the dense layer before the head from the source, if the config has none.

    Returns:
      (the config, a line for each field that changed).
    """
    changes = {
        name: getattr(source, name) for name in INHERITED_FIELDS if getattr(source, name) != getattr(config, name)
    }
    if options.pre_logits == "load" and config.representation_size is None and source.representation_size:
        changes["representation_size"] = source.representation_size
    said = [f"{name} = {value} (was {getattr(config, name)})" for name, value in changes.items()]
    return dataclasses.replace(config, **changes), said
