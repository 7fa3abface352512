"""Applies a table of names (`vivit_jax.convert.tables`) both ways; any leaf that does not fit is an error."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vivit_jax.convert.containers.arrays import Leaf
from vivit_jax.convert.tables.rows import Dropped, Row, drop_reason

# {layer, None for a whole leaf of ours: (name in the file, array)}.
Pieces = dict[int | None, tuple[str, np.ndarray]]
_PLACEHOLDER = re.compile(r"\\{(\w+)\\}")


class ConversionError(ValueError):
    """Leaves that do not fit, all of them: `problems` has one line for each."""

    def __init__(self, summary: str, problems: Sequence[str], advice: Sequence[str] = ()):
        self.summary, self.problems = summary, tuple(problems)
        lines = [f"{summary}: {len(self.problems)} problem(s)", *(f"  {line}" for line in problems), *advice]
        super().__init__("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Result of `load`."""

    params: dict[str, np.ndarray]  # our name -> array
    origin: dict[str, str]  # our name -> where it comes from, for the report
    dropped: dict[str, str]  # name in the file -> why it was left out on purpose


def load(
    source: Mapping[str, Leaf], rows: Sequence[Row], target: Mapping[str, Any], dropped: Sequence[Dropped] = ()
) -> Loaded:
    """Converts the leaves of a file to ours; memory holds each number once, and two copies of one leaf.

    `target` is our name -> shape and dtype, layers stacked [L, ...]; exactly these leaves are produced.
    """
    patterns = [(_compile(entry.source), entry) for entry in rows]
    pieces: dict[str, Pieces] = {name: {} for name in target}
    dropped_names: dict[str, str] = {}
    problems: list[str] = []
    for name, leaf in source.items():
        match, entry = _first(patterns, name)
        if match is None:
            if (why := drop_reason(name, dropped)) is None:
                problems.append(f"{name} {tuple(leaf.shape)}: no place for it in this model")
            else:
                dropped_names[name] = why
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):  # NumPy does not count bfloat16
            problems.append(f"{name} {tuple(leaf.shape)}: holds {leaf.dtype}, not floating-point numbers")
        else:
            layer = int(match["layer"]) if "layer" in match else None
            for target_name, array in zip(entry.target, entry.transform.load(leaf.read()), strict=True):
                ours = target_name.format(**match)
                if ours not in target:
                    problems.append(f"{name} {array.shape}: would be {ours}, which this model does not have")
                elif layer in pieces[ours]:
                    problems.append(f"{name}: {ours} is already filled by another leaf")
                else:
                    pieces[ours][layer] = name, array
    params, origin = {}, {}
    for name, leaf in target.items():
        of_leaf = pieces.pop(name)
        if problem := _misfit(leaf.shape, of_leaf):
            problems.append(f"{name}{problem}")
            continue
        params[name] = np.empty(leaf.shape, leaf.dtype)
        for layer, (source_name, array) in of_leaf.items():
            destination = params[name][... if layer is None else layer]
            with np.errstate(over="ignore"):  # overflow to infinity is reported below
                destination[...] = array
            if not np.isfinite(destination).all():
                where = "" if layer is None else f", layer {layer}"
                what = "NaN or infinity" if not np.isfinite(array).all() else f"numbers beyond {leaf.dtype}"
                problems.append(f"{name}{where}: holds {what} (from {source_name})")
        names = [source_name for source_name, _ in of_leaf.values()]
        origin[name] = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        if others := sorted({array.dtype.name for _, array in of_leaf.values()} - {leaf.dtype.name}):
            origin[name] += f" (stored as {', '.join(others)})"
    if problems:
        raise ConversionError("the weights do not fit the model", problems)
    return Loaded(params, origin, dropped_names)


def _misfit(shape: tuple[int, ...], pieces: Pieces) -> str:
    """Returns why pieces do not make a leaf of this shape, to follow its name; '' if they do."""
    if not pieces:
        return f" {shape}: nothing in the source fills it"
    expected = {None: shape} if None in pieces else dict.fromkeys(range(shape[0]), shape[1:])
    if missing := sorted(set(expected) - set(pieces)):
        return f": layers {missing} are missing, the model has {shape[0]}"
    if extra := sorted(set(pieces) - set(expected)):
        return f": the source has layers {extra} too, the model only {shape[0]}"
    if wrong := {layer: array.shape for layer, (_, array) in pieces.items() if array.shape != expected[layer]}:
        where = "the source has" if None in wrong else f"layers {sorted(wrong)} have"
        stored = ", ".join(map(str, sorted(set(wrong.values()))))
        return f": {where} shape {stored}, the model {shape if None in wrong else shape[1:]}"
    return ""


def save(params: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Converts our leaves, layers stacked [L, ...], to those of a format: the inverse of `load`."""
    patterns = [(_compile(name), entry) for entry in rows for name in entry.target]
    problems: list[str] = []
    flat: dict[str, np.ndarray] = {}
    for name in params:
        match, entry = _first(patterns, name)
        if match is None:
            problems.append(f"{name} {np.shape(params[name])}: the format has no name for it")
            continue
        group = [pattern.format(**match) for pattern in entry.target]
        if missing := [member for member in group if member not in params]:
            problems.append(f"{name}: stored together with {', '.join(missing)}, which is missing")
        elif name == group[0]:  # the first of a group writes all of it
            arrays = [np.asarray(params[member]) for member in group]
            if "{layer}" in entry.source:
                for layer, layer_arrays in enumerate(zip(*arrays, strict=True)):
                    flat[entry.source.format(layer=layer, **match)] = entry.transform.save(list(layer_arrays))
            else:
                flat[entry.source.format(**match)] = entry.transform.save(arrays)
    if problems:
        raise ConversionError("the parameters do not fit the format", problems)
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    """Compiles 'block_{layer}/{leaf}': {layer} matches a number, other placeholders one part of a name."""
    kinds = {"layer": r"(?P<layer>\d+)"}
    return re.compile(_PLACEHOLDER.sub(lambda m: kinds.get(m[1], rf"(?P<{m[1]}>[^/.]+)"), re.escape(pattern)))


def _first(patterns: Iterable[tuple[re.Pattern[str], Row]], name: str) -> tuple[dict[str, str] | None, Row]:
    """Returns the placeholders' values and the row of the first match; None where nothing matches."""
    for pattern, entry in patterns:
        if match := pattern.fullmatch(name):
            return match.groupdict(), entry
    return None, None  # type: ignore[return-value]
