"""Applies a table of names (`vivit_jax.convert.tables`) both ways; whatever does not fit is an error."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.convert.containers.arrays import Leaf
from vivit_jax.convert.tables.rows import Dropped, Row

_PLACEHOLDER = re.compile(r"\\{(\w+)\\}")


class ConversionError(ValueError):
    """Leaves that do not fit, all of them: `problems` is one line for each."""

    def __init__(self, summary: str, problems: Sequence[str], advice: Sequence[str] = ()):
        self.summary, self.problems = summary, tuple(problems)
        lines = [f"{summary}: {len(self.problems)} problem(s)", *(f"  {line}" for line in problems), *advice]
        super().__init__("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load` found.

    Attributes:
      params: our name -> array.
      origin: our name -> their names.
      stored_as: our name -> the dtypes in the file, where they are not the parameters' own.
      dropped: their name -> why it was left out on purpose.
    """

    params: dict[str, np.ndarray]
    origin: dict[str, list[str]]
    stored_as: dict[str, set[str]]
    dropped: dict[str, str]


def load(
    source: Mapping[str, Leaf],
    rows: Sequence[Row],
    target: Mapping[str, jax.ShapeDtypeStruct],
    dropped: Sequence[Dropped] = (),
) -> Loaded:
    """Their leaves to ours, one after the other, so that memory holds the result and one leaf.

    Args:
      source: their name -> leaf, read here.
      rows: the table.
      target: our name -> shape and dtype, stacked leaves [L, ...]; exactly these are produced.
      dropped: names to leave out.

    Raises:
      ConversionError: names that no row knows, leaves of ours that nothing fills or that two fill, layers
        that are missing or too many, shapes that differ, numbers that are not finite or not floating; all of
        them at once.
    """
    patterns = [(_compile(entry.theirs), entry) for entry in rows]
    filler = _Filler(target)
    left_out: dict[str, str] = {}
    problems = filler.problems
    for theirs, leaf in source.items():
        match, entry = _first(patterns, theirs)
        if match is None:
            why = next((rule.why for rule in dropped if re.match(rule.pattern, theirs)), None)
            if why is None:
                problems.append(f"{theirs} {tuple(leaf.shape)}: no place for it in this model")
            else:
                left_out[theirs] = why
            continue
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # NumPy does not count bfloat16
            problems.append(f"{theirs} {tuple(leaf.shape)}: holds {leaf.dtype}, not floating-point numbers")
            continue
        layer = int(match["layer"]) if "layer" in match else None
        arrays = entry.transform.load(leaf.read())
        for ours, array in zip(entry.ours, arrays, strict=True):
            filler.put(_fill(ours, match), layer, array, theirs)
    params = filler.finish()
    if problems:
        raise ConversionError("the weights do not fit the model", problems)
    return Loaded(params, filler.origin, filler.stored_as, left_out)


class _Filler:
    """Our leaves, allocated when the first piece of them arrives; whatever does not fit goes to `problems`."""

    def __init__(self, target: Mapping[str, jax.ShapeDtypeStruct]):
        self.problems: list[str] = []
        self.origin: dict[str, list[str]] = {}
        self.stored_as: dict[str, set[str]] = {}
        self._target = target
        self._arrays: dict[str, np.ndarray] = {}
        self._filled: dict[str, set[int | None]] = {}
        self._misfits: dict[str, dict[tuple[int, ...], list[int]]] = {}

    def put(self, name: str, layer: int | None, array: np.ndarray, theirs: str) -> None:
        """One layer of a leaf, or (None) all of it."""
        if name not in self._target:
            what = f"{theirs} {array.shape}: would be {name}, which this model does not have"
            self.problems.append(what)
            return
        filled = self._filled.setdefault(name, set())
        if layer in filled:
            self.problems.append(f"{theirs}: {name} is already filled by another leaf")
            return
        filled.add(layer)
        self.origin.setdefault(name, []).append(theirs)
        leaf = self._target[name]
        if layer is None and array.shape != leaf.shape:
            self.problems.append(f"{name}: the source has shape {array.shape}, the model {leaf.shape}")
        elif layer is not None and array.shape != leaf.shape[1:]:
            self._misfits.setdefault(name, {}).setdefault(array.shape, []).append(layer)
        elif layer is None or layer < leaf.shape[0]:
            if array.dtype != leaf.dtype:
                self.stored_as.setdefault(name, set()).add(array.dtype.name)
            if name not in self._arrays:
                self._arrays[name] = np.empty(leaf.shape, leaf.dtype)
            place = self._arrays[name][... if layer is None else layer]
            with np.errstate(over="ignore"):  # what leaves the range is found below
                place[...] = array
            if not np.isfinite(place).all():
                where = "" if layer is None else f", layer {layer}"
                what = "NaN or infinity" if not np.isfinite(array).all() else f"numbers beyond {leaf.dtype}"
                self.problems.append(f"{name}{where}: holds {what} (from {theirs})")

    def finish(self) -> dict[str, np.ndarray]:
        """All leaves; what is missing or has too many layers goes to `problems`."""
        for name, leaf in self._target.items():
            shape = leaf.shape
            if name not in self._filled:
                self.problems.append(f"{name} {shape}: nothing in the source fills it")
                continue
            layers = {layer for layer in self._filled[name] if layer is not None}
            if not layers:
                continue
            if None in self._filled[name]:
                self.problems.append(f"{name}: filled as a whole and by layers")
            if missing := sorted(set(range(shape[0])) - layers):
                self.problems.append(f"{name}: layers {missing} are missing, the model has {shape[0]}")
            elif extra := sorted(layers - set(range(shape[0]))):
                self.problems.append(f"{name}: the source has layers {extra} too, the model only {shape[0]}")
            elif misfits := self._misfits.get(name):
                wrong = sorted(layer for layers in misfits.values() for layer in layers)
                shapes = ", ".join(map(str, sorted(misfits)))
                self.problems.append(f"{name}: layers {wrong} have shape {shapes}, the model {shape[1:]}")
        return {name: self._arrays[name] for name in self._target if name in self._arrays}


def save(params: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Our flat dict to theirs: the inverse of `load`.

    Args:
      params: our name -> array, stacked leaves [L, ...].
      rows: the table.

    Returns:
      Their name -> array.

    Raises:
      ConversionError: leaves of ours that no row knows, or a row of which some leaves are there and others
        are not.
    """
    patterns = [(_compile(name), entry) for entry in rows for name in entry.ours]
    problems: list[str] = []
    result: dict[str, np.ndarray] = {}
    for ours in params:
        match, entry = _first(patterns, ours)
        if match is None:
            problems.append(f"{ours} {np.shape(params[ours])}: the format has no name for it")
            continue
        names = [_fill(name, match) for name in entry.ours]
        if missing := [name for name in names if name not in params]:
            problems.append(f"{ours}: stored together with {', '.join(missing)}, which is missing")
            continue
        if ours != names[0]:  # The first of a group writes the whole of it.
            continue
        arrays = [np.asarray(params[name]) for name in names]
        if "{layer}" in entry.theirs:
            for layer in range(arrays[0].shape[0]):
                theirs = _fill(entry.theirs, {**match, "layer": str(layer)})
                result[theirs] = entry.transform.save([array[layer] for array in arrays])
        else:
            result[_fill(entry.theirs, match)] = entry.transform.save(arrays)
    if problems:
        raise ConversionError("the parameters do not fit the format", problems)
    return result


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    """'block_{layer}/{leaf}' as a regular expression: placeholders match a number or one part of a name."""
    kinds = {"layer": r"(?P<layer>\d+)"}
    return re.compile(_PLACEHOLDER.sub(lambda m: kinds.get(m[1], rf"(?P<{m[1]}>[^/.]+)"), re.escape(pattern)))


def _first(patterns: Iterable[tuple[re.Pattern[str], Row]], name: str) -> tuple[dict[str, str] | None, Row]:
    """The placeholders' values and the row, of the first row that matches; None where none does."""
    for pattern, entry in patterns:
        if match := pattern.fullmatch(name):
            return match.groupdict(), entry
    return None, None  # type: ignore[return-value]


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    """Puts the values into the placeholders."""
    for key, value in values.items():
        pattern = pattern.replace(f"{{{key}}}", value)
    return pattern
