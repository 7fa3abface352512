"""Weights of others, in and out: `load_params`, `save_params`. Names are in `vivit_jax.convert.tables`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from vivit_jax.convert import engine
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.tables import FORMATS
from vivit_jax.models import ViViTConfig, abstract_params

__all__ = ["FORMATS", "ConversionError", "find_format", "load_params", "save_params", "to_flat"]

Source = str | os.PathLike[str] | Mapping[str, Any]


def load_params(
    source: Source, format: str | None = None, *, config: ViViTConfig, prefix: str | None = None
) -> dict[str, Any]:
    """Weights in a format of others as parameters of our model.

    Args:
      source: a path to an .npz of flat names, or a mapping name -> array (nested mappings are flattened with
        '/').
      format: a key of `FORMATS`; None finds it by the names.
      config: the model to fill.
      prefix: look at names that begin so and at nothing else, and take it away. None takes away what stands
        in front of every name ('params/', 'optimizer/target/').

    Returns:
      The nested dict of NumPy arrays for `ViViT(config).apply({"params": ...})`, in the dtype of the
      parameters.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is not an .npz, its format is unknown, or only some of its names have a known prefix.
      ConversionError: a leaf that is unknown, missing, of another shape, or not finite; all of them at once.
    """
    flat = _read(source)
    if prefix is not None:
        flat = {name.removeprefix(prefix): array for name, array in flat.items() if name.startswith(prefix)}
        if not flat:
            raise ValueError(f"no name in the source begins with prefix={prefix!r}")
    format = _known(format) if format is not None else find_format(flat)
    if prefix is None:
        flat = _strip(flat, FORMATS[format].prefixes)
    target = dict(flax.traverse_util.flatten_dict(abstract_params(config), sep="/").items())
    shapes = {name: leaf.shape for name, leaf in target.items()}
    loaded = engine.load(flat, FORMATS[format].rows(config), shapes)
    bad = [f"{name}: holds NaN or infinity" for name, array in loaded.items() if not np.isfinite(array).all()]
    if bad:
        raise ConversionError("the weights are not finite", bad)
    ours = {name: np.asarray(array, dtype=target[name].dtype) for name, array in loaded.items()}
    return flax.traverse_util.unflatten_dict(ours, sep="/")


def to_flat(params: Mapping[str, Any], format: str, config: ViViTConfig) -> dict[str, np.ndarray]:
    """Our parameters under the names of a format: the inverse of `load_params`, exact to the bit.

    Args:
      params: the nested dict of parameters.
      format: a key of `FORMATS`.
      config: the model that the parameters belong to.

    Returns:
      Their name -> array.

    Raises:
      ValueError: an unknown format.
      ConversionError: parameters that the format has no name for.
    """
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    return engine.save(flat, FORMATS[_known(format)].rows(config))


def save_params(params: Mapping[str, Any], path: str | os.PathLike[str], format: str, config: ViViTConfig) -> None:
    """Writes our parameters as an .npz of flat names of a format; `load_params` reads it back.

    Args:
      params: the nested dict of parameters.
      path: where to; ends in .npz.
      format: a key of `FORMATS`.
      config: the model that the parameters belong to.

    Raises:
      ValueError: an unknown format, or a path that does not end in .npz.
      ConversionError: parameters that the format has no name for.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"{os.fspath(path)!r} must end in .npz: {format} weights are written as a flat .npz")
    np.savez(path, **to_flat(params, format, config))


def find_format(names: Mapping[str, Any]) -> str:
    """The format whose names these are, found by looking at them.

    Raises:
      ValueError: none of the known ones.
    """
    for format, facts in FORMATS.items():
        if any(re.search(facts.signature, name) for name in names):
            return format
    some = ", ".join(list(names)[:3]) or "none at all"
    raise ValueError(f"the names are of no known format ({', '.join(FORMATS)}); the first are: {some}")


def _known(format: str) -> str:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}")
    return format


def _read(source: Source) -> dict[str, Any]:
    """The flat dict name -> array that a path or a mapping stands for."""
    if isinstance(source, Mapping):
        return flax.traverse_util.flatten_dict(dict(source), sep="/")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: not a file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # NumPy raises a dozen kinds for files that are cut off or something else.
        raise ValueError(f"{path} is not a readable .npz of arrays: {error}") from error


def _strip(flat: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Takes away a prefix that all names share; some under it and some beside it need the caller's word."""
    for prefix in prefixes:
        beside = [name for name in flat if not name.startswith(prefix)]
        if not beside:
            return {name.removeprefix(prefix): array for name, array in flat.items()}
        if len(beside) < len(flat):
            raise ValueError(
                f"names under {prefix!r} and {len(beside)} beside it ({', '.join(beside[:3])}, ...): "
                f"give prefix={prefix!r} to load those under it and leave the others"
            )
    return dict(flat)
