"""Applies a table of names (`vivit_jax.convert.tables`) both ways; any leaf that does not fit is an error."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.convert.containers.arrays import Leaf
from vivit_jax.convert.tables.rows import Dropped, Row, drop_reason

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
    source: Mapping[str, Leaf],
    rows: Sequence[Row],
    target: Mapping[str, jax.ShapeDtypeStruct],
    dropped: Sequence[Dropped] = (),
) -> Loaded:
    """Converts the leaves of a file to ours, one at a time, so that memory holds the result and one leaf.

    `target` is our name -> shape and dtype, layers stacked [L, ...]; exactly these leaves are produced.
    """
    patterns = [(_compile(entry.source), entry) for entry in rows]
    filler = _Filler(target)
    dropped_names: dict[str, str] = {}
    problems = filler.problems
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
                filler.put(target_name.format(**match), layer, array, name)
    params = filler.finish()
    if problems:
        raise ConversionError("the weights do not fit the model", problems)
    return Loaded(params, {name: filler.origin(name) for name in params}, dropped_names)


class _Filler:
    """Fills our leaves, allocated when their first layer arrives, and collects what does not fit in `problems`."""

    def __init__(self, target: Mapping[str, jax.ShapeDtypeStruct]):
        self.problems: list[str] = []
        self._target = target
        self._arrays: dict[str, np.ndarray] = {}
        # Our name -> {layer, None for a whole leaf: the array's (name in the file, shape, dtype)}.
        self._filled: dict[str, dict[int | None, tuple[str, tuple[int, ...], np.dtype]]] = {}

    def put(self, name: str, layer: int | None, array: np.ndarray, source: str) -> None:
        """Stores one layer of a leaf, or (None) the whole leaf."""
        if name not in self._target:
            self.problems.append(f"{source} {array.shape}: would be {name}, which this model does not have")
            return
        filled, leaf = self._filled.setdefault(name, {}), self._target[name]
        if layer in filled:
            self.problems.append(f"{source}: {name} is already filled by another leaf")
            return
        filled[layer] = source, array.shape, array.dtype
        if layer is None and array.shape != leaf.shape:
            self.problems.append(f"{name}: the source has shape {array.shape}, the model {leaf.shape}")
        elif layer is None or (array.shape == leaf.shape[1:] and layer < leaf.shape[0]):  # `finish` reports others
            if name not in self._arrays:
                self._arrays[name] = np.empty(leaf.shape, leaf.dtype)
            destination = self._arrays[name][... if layer is None else layer]
            with np.errstate(over="ignore"):  # overflow to infinity is reported below
                destination[...] = array
            if not np.isfinite(destination).all():
                where = "" if layer is None else f", layer {layer}"
                what = "NaN or infinity" if not np.isfinite(array).all() else f"numbers beyond {leaf.dtype}"
                self.problems.append(f"{name}{where}: holds {what} (from {source})")

    def finish(self) -> dict[str, np.ndarray]:
        """Returns all leaves; missing leaves and wrong layers go to `problems`."""
        for name, leaf in self._target.items():
            shape, layers = leaf.shape, dict(self._filled.get(name, {}))
            if not layers:
                self.problems.append(f"{name} {shape}: nothing in the source fills it")
            elif layers.pop(None, None) and not layers:
                continue
            elif missing := sorted(set(range(shape[0])) - set(layers)):
                self.problems.append(f"{name}: layers {missing} are missing, the model has {shape[0]}")
            elif extra := sorted(set(layers) - set(range(shape[0]))):
                self.problems.append(f"{name}: the source has layers {extra} too, the model only {shape[0]}")
            elif wrong := {layer: stored for layer, (_, stored, _) in layers.items() if stored != shape[1:]}:
                shapes = ", ".join(map(str, sorted(set(wrong.values()))))
                self.problems.append(f"{name}: layers {sorted(wrong)} have shape {shapes}, the model {shape[1:]}")
        return {name: self._arrays[name] for name in self._target if name in self._arrays}

    def origin(self, name: str) -> str:
        """Returns the names in the file that fill a leaf, and their types where the leaf has another."""
        sources, _, dtypes = zip(*self._filled[name].values(), strict=True)
        names = sources[0] if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"
        others = sorted({dtype.name for dtype in dtypes} - {self._target[name].dtype.name})
        return f"{names} (stored as {', '.join(others)})" if others else names


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
