"""What a table of names is made of: rows, the transforms of their arrays, and the facts of a format.

A row is (their name, our name, transform). `{layer}` stands for the number of a layer, which they have in the name and
we as the leading axis; `{leaf}` and the like stand for one part of a name. The engine (`vivit_jax.convert.engine`)
applies the rows in both directions; where several rows would write the same leaf of ours, the first does, so that
other spellings of a name (aliases) come after the one that is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.models import ViViTConfig

Leaves = list[np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How an array of theirs becomes one or several of ours, and back. Arrays are of one layer.

    Attributes:
      load: their array -> ours, one for each of the row's names.
      save: ours, in the same order -> their array.
    """

    load: Callable[[np.ndarray], Leaves]
    save: Callable[[Leaves], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      theirs: a name of theirs, parts separated as they separate them, with placeholders in braces.
      ours: our name with the same placeholders, or several for an array of theirs that holds several of ours.
      transform: between the arrays.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Names that are left out on purpose.

    Attributes:
      pattern: regular expression, searched from the beginning of a name.
      why: for the report.
      harmless: the model computes the same without them. Where it does not, `load_params` refuses, and only
        `initialise` goes on, with a line in its report.
    """

    pattern: str
    why: str
    harmless: bool = True


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the reader of a file may know that the file does not say.

    Attributes:
      grid: (n_t, n_h, n_w), tokens along time, height, width of the model in the file; (n_h, n_w) of an image model.
      num_heads: attention heads of the model in the file.
      target: the model that the weights are wanted for; decides where the file leaves several readings.
    """

    grid: tuple[int, ...] | None = None
    num_heads: int | None = None
    target: ViViTConfig | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """What there is to know about one way of storing weights.

    Attributes:
      rows: config -> its table.
      describe: (name -> shape, facts beside the weights, hints) -> the model that they belong to.
      signature: a regular expression that finds a name which only this format has.
      prefixes: what may stand in front of every name, longest first.
      dropped: names left out on purpose.
      fold: name -> leaf, names without prefix, to the same, before anything else looks at them: for what takes several
        arrays of theirs at once. Leaves are read when those that it gives back are.
    """

    rows: Callable[[ViViTConfig], Sequence[Row]]
    describe: Callable[[Shapes, Mapping[str, Any], Hints], ViViTConfig]
    signature: str
    prefixes: tuple[str, ...] = ("",)
    dropped: tuple[Dropped, ...] = ()
    fold: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def row(theirs: str, ours: str | tuple[str, ...], transform: Transform | None = None) -> Row:
    """A `Row`; one name of ours may come without its tuple, and no transform means the same array."""
    return Row(theirs, (ours,) if isinstance(ours, str) else ours, transform or SAME)


SAME = Transform(load=lambda x: [x], save=lambda xs: xs[0])
# (1, 1, d) or (1, N, d) there, (d,) or (N, d) here.
VECTOR = Transform(load=lambda x: [_unbatch(x, (1, 1))], save=lambda xs: xs[0][None, None])
SEQUENCE = Transform(load=lambda x: [_unbatch(x, (1,))], save=lambda xs: xs[0][None])
TRANSPOSED = Transform(load=lambda x: [x.T], save=lambda xs: xs[0].T)
# Convolution kernels of PyTorch, (d, C, [t,] h, w) there, ([t,] h, w, C, d) here.
CONVOLUTION = Transform(
    load=lambda x: [np.moveaxis(x, (0, 1), (-1, -2))], save=lambda xs: np.moveaxis(xs[0], (-1, -2), (0, 1))
)


def image_kernel(config: ViViTConfig, transform: Transform = SAME) -> Transform:
    """The 2-D embedding of an image model, which a config may write as tubelets of one frame: (1, h, w, C, d)."""

    def load(x: np.ndarray) -> Leaves:
        (kernel,) = transform.load(x)
        return [kernel[None] if config.tokenizer == "tubelet" and kernel.ndim == 4 else kernel]

    return Transform(load, lambda xs: transform.save([xs[0][0] if xs[0].ndim == 5 else xs[0]]))


def _unbatch(x: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Takes leading axes of length one away; an array that has others stays, to be refused by its shape."""
    return x.reshape(x.shape[len(lead) :]) if x.shape[: len(lead)] == lead else x


def slotted(slots: int) -> Transform:
    """Positions without a slot for the class token, which others add after the positions: here its slot is zero.

    Args:
      slots: our rows, the class token's in front.
    """

    def load(x: np.ndarray) -> Leaves:
        x = _unbatch(x, (1,))
        return [np.pad(x, ((1, 0), (0, 0))) if x.ndim == 2 and x.shape[0] == slots - 1 else x]

    return Transform(load=load, save=lambda xs: xs[0][None])


def concatenated(sizes: Sequence[int]) -> Transform:
    """Several arrays of ours side by side along the last axis of one of theirs: heads, or fused projections.

    Args:
      sizes: what each of ours has of the last axis.
    """
    places = np.cumsum(sizes)[:-1]
    return Transform(
        load=lambda x: np.split(x, places, axis=-1) if x.shape[-1:] == (sum(sizes),) else [x] * len(sizes),
        save=lambda xs: np.concatenate(xs, axis=-1),
    )


def projection(num_heads: int, parts: int = 1) -> Transform:
    """A dense layer's (parts x heads x head_dim, d) as PyTorch has it -> `parts` kernels (d, heads, head_dim) of ours.

    A bias (parts x heads x head_dim,) -> (heads, head_dim).
    """

    def load(x: np.ndarray) -> Leaves:
        if x.shape[0] % (parts * num_heads):
            return [x] * parts  # to be refused by its shape
        pieces = np.split(x, parts, axis=0)
        return [piece.T.reshape(*piece.T.shape[:-1], num_heads, -1) for piece in pieces]

    def save(xs: Leaves) -> np.ndarray:
        return np.concatenate([x.reshape(*x.shape[:-2], -1).T for x in xs], axis=0)

    return Transform(load, save)


def output_projection(num_heads: int) -> Transform:
    """A dense layer's (d, heads x head_dim) as PyTorch has it <-> our (heads, head_dim, d)."""

    def load(x: np.ndarray) -> Leaves:
        return [x.T.reshape(num_heads, -1, x.shape[0]) if x.ndim == 2 and x.shape[1] % num_heads == 0 else x]

    return Transform(load, lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T)


def stacked(transform: Transform) -> Transform:
    """The transform of one layer, for arrays of theirs that hold all layers along a leading axis, as ours do."""

    def load(x: np.ndarray) -> Leaves:
        layers = [transform.load(layer) for layer in x]
        return [np.stack(group) for group in zip(*layers, strict=True)]

    def save(xs: Leaves) -> np.ndarray:
        return np.stack([transform.save(list(group)) for group in zip(*xs, strict=True)])

    return Transform(load, save)
