"""Rows of the tables of names, and the description of a format.

A row is (name in the format, our name, transform). `{layer}` stands for the index of a layer, part of the name there
and the leading axis here; other placeholders such as `{leaf}` stand for one part of a name. `vivit_jax.convert.engine`
applies rows both ways. Where several rows have the same name of ours the first is written, so aliases come later.
"""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit_jax.convert.tables.transforms import SAME, Transform
from vivit_jax.models import ViViTConfig

Shapes = Mapping[str, tuple[int, ...]]
NAMES = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    source: str  # name in the format, with placeholders in braces
    target: tuple[str, ...]  # our names; several where one array of the format holds several of ours
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Names that are left out on purpose."""

    pattern: str  # regular expression, matched at the start of a name
    why: str  # for the report
    harmless: bool = True  # False: the model computes something else without them; `load_params` refuses the weights


def dropped(*sections: str) -> tuple[Dropped, ...]:
    """Returns the rules in some sections of names.toml."""
    return tuple(Dropped(**rule) for section in sections for rule in NAMES["dropped"][section])


def drop_reason(name: str, dropped: Sequence[Dropped]) -> str | None:
    """Returns why a name is left out; None where no rule matches."""
    return next((rule.why for rule in dropped if re.match(rule.pattern, name)), None)


@dataclasses.dataclass(frozen=True)
class Hints:
    """Facts about the model in a file that the file itself may not contain."""

    grid: tuple[int, ...] | None = None  # (n_t, n_h, n_w) tokens; (n_h, n_w) of an image model
    num_heads: int | None = None
    target: ViViTConfig | None = None  # the model that will be filled; decides between several readings


@dataclasses.dataclass(frozen=True)
class Format:
    """Description of a weight format."""

    rows: Callable[[ViViTConfig], Sequence[Row]]
    describe: Callable[[Shapes, Mapping[str, Any], Hints], ViViTConfig]  # from shapes, `Container.metadata` and hints
    signature: str  # regular expression for a name of this format; where it fits several, the first in FORMATS counts
    without: str | None = None  # regular expression for a name that weights of this format do not have
    roots: tuple[str, ...] = ()  # what the rows themselves may have before it
    dropped: tuple[Dropped, ...] = ()
    # Applied to {name without prefix: leaf} before the rows, where an array of ours takes several of the file.
    fold: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def row(source: str, target: str | tuple[str, ...], transform: Transform | None = None) -> Row:
    """Returns a `Row`; without a transform the arrays are the same."""
    return Row(source, (target,) if isinstance(target, str) else target, transform or SAME)
