"""Applies a table of names (`vivit_jax.convert.tables`) both ways; whatever does not fit is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.convert.tables.rows import Row

_PLACEHOLDER = re.compile(r"\\{(\w+)\\}")


class ConversionError(ValueError):
    """Leaves that do not fit, all of them: `problems` is one line for each."""

    def __init__(self, summary: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(f"{summary}: {len(self.problems)} problem(s)\n  " + "\n  ".join(self.problems))


def load(
    source: Mapping[str, Any], rows: Sequence[Row], target: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Their flat dict to ours.

    Args:
      source: their name -> array.
      rows: the table.
      target: our name -> shape, stacked leaves [L, ...]; exactly these are produced.

    Returns:
      Our name -> array, the dtype as in `source`.

    Raises:
      ConversionError: names that no row knows, leaves of ours that nothing fills or that two fill, layers
        that are missing or too many, shapes that differ; all of them at once.
    """
    patterns = [(_compile(entry.theirs), entry) for entry in rows]
    problems: list[str] = []
    found: dict[str, dict[int | None, np.ndarray]] = {}
    for theirs, array in source.items():
        match, entry = _first(patterns, theirs)
        if match is None:
            problems.append(f"{theirs} {np.shape(array)}: no place for it in this model")
            continue
        layer = int(match["layer"]) if "layer" in match else None
        arrays = entry.transform.load(np.asarray(array))
        for ours, ours_array in zip(entry.ours, arrays, strict=True):
            name = _fill(ours, match)
            if name not in target:
                problems.append(f"{theirs} {np.shape(array)}: would be {name}, which this model does not have")
            elif layer in found.setdefault(name, {}):
                problems.append(f"{theirs}: {name} is already filled by another leaf")
            else:
                found[name][layer] = ours_array
    result = {}
    for name, shape in target.items():
        if name not in found:
            problems.append(f"{name} {shape}: nothing in the source fills it")
        elif (joined := _join(name, found[name], shape, problems)) is not None:
            result[name] = joined
    if problems:
        raise ConversionError("the weights do not fit the model", problems)
    return result


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


def _join(
    name: str, pieces: Mapping[int | None, np.ndarray], shape: tuple[int, ...], problems: list[str]
) -> np.ndarray | None:
    """One leaf of ours from its layers or its only array; None and a line in `problems` if unfit."""
    if None in pieces:
        if pieces[None].shape != shape:
            problems.append(f"{name}: the source has shape {pieces[None].shape}, the model {shape}")
            return None
        return pieces[None]
    expected = range(shape[0])
    if missing := sorted(set(expected) - set(pieces)):
        problems.append(f"{name}: layers {missing} are missing, the model has {shape[0]}")
        return None
    if extra := sorted(set(pieces) - set(expected)):
        problems.append(f"{name}: the source has layers {extra} too, the model only {shape[0]}")
        return None
    if wrong := [layer for layer in expected if pieces[layer].shape != shape[1:]]:
        shapes = sorted({pieces[layer].shape for layer in wrong})
        problems.append(f"{name}: layers {wrong} have shape {', '.join(map(str, shapes))}, the model {shape[1:]}")
        return None
    return np.stack([pieces[layer] for layer in expected])


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
