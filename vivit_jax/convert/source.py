"""A source of weights, opened and understood: which format, which model, which names are parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util

from vivit_jax.convert import engine
from vivit_jax.convert.containers.open import Leaf, Weights, open_weights
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.report import in_words
from vivit_jax.convert.tables import FORMATS, Dropped, Hints
from vivit_jax.models import ViViTConfig, abstract_params

Path = str | os.PathLike[str]
Source = Path | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Understood:
    """Weights whose format is known.

    Attributes:
      weights: what was opened.
      format: a key of `FORMATS`.
      leaves: their name, prefix taken away -> leaf.
      left_out: names under none of the parameters' prefixes -> why.
    """

    weights: Weights
    format: str
    leaves: dict[str, Leaf]
    left_out: dict[str, str]

    def model(self, hints: Hints) -> ViViTConfig:
        """The model that the weights are of.

        Raises:
          ValueError: it cannot be known from them and the hints.
        """
        shapes = {name: tuple(leaf.shape) for name, leaf in self.leaves.items()}
        try:
            return FORMATS[self.format].describe(shapes, self.weights.facts, hints)
        except ValueError as error:
            raise ValueError(f"{self.weights.where} ({self.format}): {error}") from error

    def pixels(self, channels: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """(mean, std) that the processor beside the weights takes off pixels in [0, 1]; (None, None) without one."""
        processor = self.weights.facts.get("preprocessor") or {}
        rescaled = processor.get("do_rescale", True) and abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) < 1e-9
        if not processor or not rescaled:
            return None, None
        if not processor.get("do_normalize", True):
            return (0.0,) * channels, (1.0,) * channels
        mean, std = processor.get("image_mean"), processor.get("image_std")
        return (tuple(mean), tuple(std)) if mean and std else (None, None)

    def load(self, config: ViViTConfig, *, strict: bool = True) -> engine.Loaded:
        """The leaves as parameters of the very model `config`.

        Args:
          config: the model.
          strict: refuse weights with parts that change what the model computes and have no place in ours.

        Raises:
          ConversionError: whatever does not fit, all of it, and which model the weights are of.
          FileError: a leaf that cannot be read.
        """
        facts = FORMATS[self.format]
        target = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
        known = [rule for rule in facts.dropped if rule.harmless or not strict]
        try:
            loaded = engine.load(self.leaves, facts.rows(config), target, known)
        except ConversionError as error:
            where = f"{error.summary} ({self.weights.where}, {self.format})"
            raise ConversionError(where, error.problems, self._advice(config)) from error
        loaded.dropped.update(self.left_out)
        return loaded

    def _advice(self, config: ViViTConfig) -> list[str]:
        """Lines for weights that do not fit: which model they are of, and why parts of them have no place."""
        lines = [
            f"{rule.pattern}: {rule.why}"
            for rule in FORMATS[self.format].dropped
            if not rule.harmless and any(re.match(rule.pattern, name) for name in self.leaves)
        ]
        with contextlib.suppress(ValueError):
            found = self.model(Hints(target=config))
            if found != config:
                lines += [
                    f"the weights are of: {in_words(found)}",
                    f"the model wanted:   {in_words(config)}",
                    "config.init_from or convert.initialise fit the weights of one model to another",
                ]
        return lines


@contextlib.contextmanager
def understand(source: Source, format: str | None = None, prefix: str | None = None) -> Iterator[Understood]:
    """Opens weights and finds out what they are; they can be read inside the context.

    Args:
      source: a file, a folder, or a mapping name -> array.
      format: a key of `FORMATS`; None looks at the names.
      prefix: look at names that begin so and at nothing else, and take it away; None finds it.

    Raises:
      FileNotFoundError, FileError: nothing there, or not readable.
      ValueError: the format is unknown, no name has the prefix, or only some names have a known prefix.
    """
    with open_weights(source) as weights:
        names = weights.leaves
        if prefix is not None:
            names = {name.removeprefix(prefix): leaf for name, leaf in names.items() if name.startswith(prefix)}
            if not names:
                raise ValueError(f"no name in {weights.where} begins with prefix={prefix!r}")
        if format is None:
            format = find_format(names, weights.where)
        check_format(format)
        left_out: dict[str, str] = {}
        if prefix is None:
            names, left_out = _strip(names, format, weights.where)
        if (fold := FORMATS[format].fold) is not None:
            names = fold(names)
        yield Understood(weights, format, names, left_out)


def find_format(names: Mapping[str, Any], where: str = "the source") -> str:
    """The format whose names these are, found by looking at them.

    Raises:
      ValueError: none of the known ones.
    """
    for format, facts in FORMATS.items():
        if any(re.search(facts.signature, name) for name in names):
            return format
    some = ", ".join(list(names)[:3]) or "none at all"
    raise ValueError(f"the names in {where} are of no known format ({', '.join(FORMATS)}); the first are: {some}")


def check_format(format: str) -> None:
    """Raises ValueError, with those that are known, where a format is not."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}")


def _strip(leaves: Mapping[str, Leaf], format: str, where: str) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Takes away the prefix of the parameters: (name without it -> leaf, names beside it -> why they are left out)."""
    facts = FORMATS[format]
    for prefix in facts.prefixes:
        under = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
        if not any(re.search(facts.signature, name) for name in under):
            continue
        beside = {name: _reason(name, facts.dropped) for name in leaves if not name.startswith(prefix)}
        unknown = [name for name, why in beside.items() if why is None]
        if unknown:
            raise ValueError(
                f"names under {prefix!r} and {len(unknown)} beside it ({', '.join(unknown[:3])}, ...) in {where}: "
                f"give prefix={prefix!r} to load those under it and leave the others"
            )
        return under, {name: why for name, why in beside.items() if why is not None}
    return dict(leaves), {}


def _reason(name: str, dropped: Sequence[Dropped]) -> str | None:
    return next((rule.why for rule in dropped if re.match(rule.pattern, name)), None)
