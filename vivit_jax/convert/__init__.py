"""Importing and exporting pretrained weights.

    load_params(source, config=config)        the weights of exactly this model
    load_model(source)                        the weights and their model
    initialise(source, config, options)       weights fitted to any of our models (section 3.4), with a report
    save_params(params, path, format, config) export

`source` is a file, a folder or a mapping (nested parameters of ours, too); its format is auto-detected. The names of
each format are in `vivit_jax.convert.tables`; one engine applies them both ways. `__main__` is the command line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util

from vivit_jax.config.sections import InitFrom
from vivit_jax.convert.containers.open import FileError
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.image_to_video import adapt
from vivit_jax.convert.report import Entry, Report, describe_model
from vivit_jax.convert.source import Source, find_format, open_weights
from vivit_jax.convert.tables import FORMATS, Hints
from vivit_jax.convert.writers import save_params, to_flat
from vivit_jax.models import ViViTConfig
from vivit_jax.models.config import INHERITED_FIELDS


def load_params(
    source: Source, format: str | None = None, *, config: ViViTConfig, prefix: str | None = None
) -> dict[str, Any]:
    """Loads the weights of exactly the model `config`: nested NumPy arrays for `ViViT(config).apply({"params": ...})`.

    `source` is a file, a folder or a mapping name -> array (nested ones are flattened with '/'). `format` (a key of
    `FORMATS`) and `prefix` (load only names with it, and strip it) are auto-detected where None. The config of an image
    model has `tokenizer="uniform_frames"`, one frame and tubelets of one. Pixels keep the range of the weights' own
    program (VideoMAE: ImageNet's mean and deviation); `initialise` and `predict` fold that into the embedding.

    Raises FileError for a file that is damaged, incomplete or without weights; ConversionError with all leaves that are
    unknown, missing, of another shape or not finite.
    """
    with open_weights(source, format, prefix) as weights:
        return flax.traverse_util.unflatten_dict(weights.load(config).params, sep="/")


def load_model(
    source: Source,
    format: str | None = None,
    *,
    prefix: str | None = None,
    grid: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    like: ViViTConfig | None = None,
) -> tuple[ViViTConfig, dict[str, Any]]:
    """Loads weights as `load_params`: (config of their model, read off their shapes and metadata; parameters).

    `grid`, `num_heads` and `like` say what the file does not: see `Hints`, where `like` is `target`.
    """
    with open_weights(source, format, prefix) as weights:
        config = weights.model_config(Hints(grid, num_heads, like))
        return config, flax.traverse_util.unflatten_dict(weights.load(config).params, sep="/")


@dataclasses.dataclass(frozen=True)
class Initialisation:
    """The model with its inherited fields, its nested parameters, and the report."""

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
    """Initialises a model from the weights of any other, image or video, at any size (section 3.4).

    Activation, LayerNorm epsilon, biases and the pre-logits layer are inherited from the weights. `options.path` is
    ignored. `class_names` is {head: names by class id} of the model, 'label' for an only head, as far as known. Raises
    ConversionError with all differences that cannot be converted.
    """
    options = options or InitFrom()
    with open_weights(source, options.format, options.prefix) as weights:
        source_config = weights.model_config(Hints(options.grid, options.num_heads, config))
        pixels, ignored = weights.pixels(source_config, options, images=True)
        loaded = weights.load(dataclasses.replace(source_config, dtype=config.dtype), strict=False, pixels=pixels)
        warnings = [ignored.warning("--config.init_from.")] if ignored else []
        source_names = weights.class_names(source_config)
    config, changes = inherit_fields(source_config, config, options)
    where, names = weights.container.where, (source_names, class_names or {})
    params, report = adapt(
        loaded.params, source_config, config, options, seed=seed, origin=loaded.origin, where=where, class_names=names
    )
    dropped = [Entry(name, "dropped", why) for name, why in loaded.dropped.items()]
    for why in dict.fromkeys(rule.why for rule in FORMATS[weights.format].dropped if not rule.harmless):
        if names := [name for name, reason in loaded.dropped.items() if reason == why]:
            warnings.append(f"{', '.join(names)} of the weights not used: {why}")
    target = report.target + (f" [inherited from the weights: {', '.join(changes)}]" if changes else "")
    entries, warnings = (*report.entries, *dropped), (*report.warnings, *warnings)
    return Initialisation(config, params, Report(report.source, target, entries, warnings))


def model_for(source: Source, config: ViViTConfig, options: InitFrom) -> ViViTConfig:
    """Returns the config that `initialise` would, from the names and shapes of the weights alone."""
    with open_weights(source, options.format, options.prefix) as weights:
        source_config = weights.model_config(Hints(options.grid, options.num_heads, config))
    return inherit_fields(source_config, config, options)[0]


def inherit_fields(source_config: ViViTConfig, config: ViViTConfig, options: InitFrom) -> tuple[ViViTConfig, list[str]]:
    """Returns `config` with the `INHERITED_FIELDS` and pre-logits layer of the weights, and a line for each change."""
    fields = {name: getattr(source_config, name) for name in INHERITED_FIELDS}
    if config.attention == "spatiotemporal" and config.classifier == "gap":
        fields["pool_norm"] = source_config.pool_norm
    if options.pre_logits == "load" and config.representation_size is None and source_config.representation_size:
        fields["representation_size"] = source_config.representation_size
    was = {name: getattr(config, name) for name in fields}
    changes = [f"{name} = {value} (was {was[name]})" for name, value in fields.items() if value != was[name]]
    return dataclasses.replace(config, **fields), changes
