"""Opened weights of a known format: which model they are of, and their parameters under our names."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util

from vivit_jax.config.sections import InitFrom
from vivit_jax.convert import engine, processor
from vivit_jax.convert.containers.open import Container, Leaf, open_container
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.processor import Processor
from vivit_jax.convert.report import describe_model
from vivit_jax.convert.tables import FORMATS, Format, Hints
from vivit_jax.convert.tables.rows import NAMES, drop_reason
from vivit_jax.convert.tables.sizes import is_image_model
from vivit_jax.models import ViViTConfig, abstract_params

Path = str | os.PathLike[str]
Source = Path | Mapping[str, Any]
Pixels = tuple[Processor | None, Processor | None]
# Modules that PyTorch puts around others, anywhere in a name.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
    """Open weights of a known format: leaves by name without prefix, and why names outside it are excluded."""

    container: Container
    format: str
    leaves: dict[str, Leaf]
    excluded: dict[str, str]

    def model_config(self, hints: Hints) -> ViViTConfig:
        """Returns the config of the model in the file; ValueError where shapes, metadata and hints leave it open."""
        shapes = {name: tuple(leaf.shape) for name, leaf in self.leaves.items()}
        try:
            return FORMATS[self.format].describe(shapes, self.container.metadata, hints)
        except ValueError as error:
            raise ValueError(f"{self.container.where} ({self.format}): {error}") from error

    def class_names(self, config: ViViTConfig) -> dict[str, list[str]]:
        """Returns {head: names by class id} of the heads that the weights name, 'label' for an only head."""
        names = (self.container.metadata.get("checkpoint") or {}).get("class_names") or {}
        written = self.container.metadata.get("config") or {}
        labels = written.get("id2label") or {i: name for name, i in (written.get("label2id") or {}).items()}
        if labels and not names:  # Hugging Face
            names = {"label": [labels[key] for key in sorted(labels, key=int)]}
        heads = {head or "label": classes for head, classes in config.heads}
        return {head: list(map(str, of)) for head, of in names.items() if len(of) == heads.get(head)}

    def pixels(self, config: ViViTConfig, options: InitFrom | None = None, images: bool = False) -> Pixels:
        """Returns the normalisation of pixels, other than ours, that (is to be folded into the embedding, is ignored).

        That of `options`, else of the image processor beside the weights: it is ignored unless they were trained with
        it, as those of VideoMAE and, with `images`, of image models.
        """
        if options is not None and options.pixel_mean is not None:
            return Processor(options.pixel_mean, options.pixel_std), None
        found = processor.read(self.container.metadata, config.in_channels)
        if found is None or found.is_ours:
            return None, None
        trained_with = self.format == "videomae" or (images and is_image_model(config))
        return (found, None) if trained_with else (None, found)

    def load(self, config: ViViTConfig, *, strict: bool = True, pixels: Processor | None = None) -> engine.Loaded:
        """Reads the parameters of exactly the model `config`; ConversionError lists all leaves that do not fit.

        `strict` refuses weights with parts that ours does not have and that change what the model computes. `pixels`,
        that the weights expect, are folded into the embedding.
        """
        format, rows = FORMATS[self.format], FORMATS[self.format].rows(config)
        target = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
        norms = [row.source for row in rows if row.target == ("encoder/norm/scale",)]
        if not strict and self.format in ("timm", "videomae") and not any(name in self.leaves for name in norms):
            target = {name: leaf for name, leaf in target.items() if not name.startswith("encoder/norm/")}
        dropped = [rule for rule in format.dropped if rule.harmless or not strict]
        try:
            loaded = engine.load(self.leaves, rows, target, dropped)
        except ConversionError as error:
            summary = f"{error.summary} ({self.container.where}, {self.format})"
            raise ConversionError(summary, error.problems, self._advice(config, error.problems)) from error
        loaded.dropped.update(self.excluded)
        if pixels is not None and not pixels.is_ours:
            pixels.fold_into(loaded.params)
            for name in processor.EMBEDDING:
                loaded.origin[name] += f"; pixels' mean {pixels.mean} and std {pixels.std} folded in"
        return loaded

    def _advice(self, config: ViViTConfig, problems: Sequence[str]) -> list[str]:
        """Returns lines on weights that do not fit: parts that ViViT does not have, and the model they are of."""
        lines = [
            f"{rule.pattern.replace(chr(92), '')}: {rule.why}"
            for rule in FORMATS[self.format].dropped
            if not rule.harmless and any(re.match(rule.pattern, problem) for problem in problems)
        ]
        with contextlib.suppress(ValueError):
            source_config = self.model_config(Hints(target=config))
            if source_config != config:
                lines += [f"the weights are of: {describe_model(source_config)}"]
                lines += [f"the model wanted:   {describe_model(config)}"]
                lines += ["config.init_from or convert.initialise fit the weights of one model to another"]
        return lines


@contextlib.contextmanager
def open_weights(source: Source, format: str | None = None, prefix: str | None = None) -> Iterator[OpenedWeights]:
    """Opens weights and detects format and prefix; they are read inside the context. See `convert.load_params`."""
    with open_container(source) as container:
        leaves = {_WRAPPERS.sub("", name): leaf for name, leaf in container.leaves.items()}
        if prefix is not None:
            leaves = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
            if not leaves:
                first = f"the first of its names are {', '.join(list(container.leaves)[:3])}"
                raise ValueError(f"no name in {container.where} begins with prefix={prefix!r}; {first}")
        for pattern, model in NAMES["other_models"].items() if format is None else ():
            if name := next((name for name in leaves if re.search(pattern, name)), None):
                problem = f"{container.where} holds another model's weights, not those of ViViT or a ViT"
                raise ValueError(f"{problem}: {model} ({name})")
        kind = (container.metadata.get("config") or {}).get("model_type")
        format = format or find_format(leaves, container.where + (f" (model_type {kind})" if kind else ""))
        check_format(format)
        leaves, excluded = _strip_prefix(leaves, format, container.where)
        if (fold := FORMATS[format].fold) is not None:
            folded = fold(leaves)
            kept = {root + name for root in ("", *FORMATS[format].roots) for name in folded}
            excluded |= {name: "folded into other arrays" for name in leaves if name not in kept}
            leaves = folded
        yield OpenedWeights(container, format, leaves, excluded)


def find_format(names: Mapping[str, Any], where: str = "the source") -> str:
    """Returns the format that uses these names; ValueError where none of `FORMATS` does."""
    for key, format in FORMATS.items():
        excluded = format.without and any(re.search(format.without, name) for name in names)
        if not excluded and any(_prefix(name, format) is not None for name in names):
            return key
    examples = ", ".join(list(names)[:3]) or "none at all"
    raise ValueError(f"the names in {where} are of no known format ({', '.join(FORMATS)}); the first are: {examples}")


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}")


def _prefix(name: str, format: Format) -> str | None:
    """Returns what is before the part of a name that a format's rows have; None for a name without its signature."""
    match = re.match(rf"(?P<prefix>(.*[./])?)({format.signature})", name)
    if match is None:
        return None
    root = next((root for root in format.roots if re.search(rf"(^|[./]){re.escape(root)}$", match["prefix"])), "")
    return match["prefix"].removesuffix(root)


def _strip_prefix(leaves: Mapping[str, Leaf], format: str, where: str) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Strips the prefix of the parameters: (name without it -> leaf, other names -> why they are left out)."""
    dropped = [rule for rule in FORMATS[format].dropped if rule.harmless]
    found = {name: _prefix(name, FORMATS[format]) for name in leaves if drop_reason(name, dropped) is None}
    prefixes = sorted({prefix for prefix in found.values() if prefix is not None})
    if len(prefixes) > 1:
        listed = " and ".join(map(repr, prefixes))
        raise ValueError(f"{where} holds several models, under {listed}: choose one, --prefix={prefixes[0]}")
    if not prefixes or not (prefix := prefixes[0]):
        return dict(leaves), {}
    reasons = {name: drop_reason(name, dropped) for name in leaves if not name.startswith(prefix)}
    if unknown := [name for name, why in reasons.items() if why is None]:
        names = f"names under {prefix!r} and {len(unknown)} beside it ({', '.join(unknown[:3])}, ...) in {where}"
        raise ValueError(f"{names}: --prefix={prefix} (prefix={prefix!r}) loads those under it and leaves the others")
    stripped = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    return stripped, {name: why for name, why in reasons.items() if why is not None}
