"""Section 3.4: a model's first weights from those of another, image or video, leaf by leaf.

Every leaf of the model is loaded, resized or initialised, every leaf of the weights is one of these or dropped; each
with its reason in the report. Whatever else differs between the two models is an error, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from vivit_jax.config.init_from import InitFrom
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.fresh import fresh_leaves
from vivit_jax.convert.heads import Names, decide, leaf_name
from vivit_jax.convert.report import Entry, Report, in_words
from vivit_jax.convert.resize import central_frame, filter_inflation, fold_normalisation, resize_grid
from vivit_jax.convert.tables.native import image_model
from vivit_jax.convert.tables.rows import Hints
from vivit_jax.models import ViViTConfig, abstract_params
from vivit_jax.models.config import INHERITED_FIELDS

_SAME = ("hidden_size", "num_layers", "num_heads", "mlp_dim", "in_channels")


def image_to_video(
    image_params: Mapping[str, Any],
    config: ViViTConfig,
    *,
    embedding: str = "central_frame",
    temporal_attention: str = "zero",
    head: str = "reinit",
    image_config: ViViTConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Parameters of a video model from those of an image ViT (section 3.4).

    Position embeddings are repeated n_t times, and resized where the grid differs; the embedding becomes a tubelet's by
    eq. 8 or 9; Model 2's spatial encoder is the image model, class token included, its temporal encoder random; Model
    3's spatial attention is the image model's, its temporal one starts at zero.

    Args:
      image_params: our parameters of an image ViT (`load_model`, `load_params`), nested.
      config: the video model. Its activation, epsilon and biases must be the image model's: `initialise` sets them.
      embedding: `central_frame` (eq. 9), `filter_inflation` (eq. 8) or `random`.
      temporal_attention: Model 3's, `zero`, `copy` or `random`; see `InitFrom`.
      head: `new` (at zero) or `keep`.
      image_config: the image model; None reads it off the parameters.
      seed: of leaves that are random.

    Returns:
      The nested parameters of `ViViT(config)`, NumPy.

    Raises:
      ConversionError: whatever differs between the two models and cannot be converted, all of it.
      ValueError: an unknown choice, or parameters that are no image model's.
    """
    options = InitFrom(embedding=embedding, temporal_attention=temporal_attention, head=head, pre_logits="drop")
    if image_config is None:
        shapes = {k: np.shape(v) for k, v in flax.traverse_util.flatten_dict(dict(image_params), sep="/").items()}
        image_config = image_model(shapes, Hints(target=config))
    return adapt(image_params, image_config, config, options, seed=seed)[0]


def adapt(
    params: Mapping[str, Any],
    source: ViViTConfig,
    config: ViViTConfig,
    options: InitFrom,
    *,
    seed: int = 0,
    origin: Mapping[str, Iterable[str]] | None = None,
    where: str = "parameters",
    class_names: tuple[Names, Names] = ({}, {}),
) -> tuple[dict[str, Any], Report]:
    """Fits the parameters of one model to another.

    Args:
      params: nested parameters of the model `source`.
      source: any of the models, or an image ViT.
      config: the model to fill.
      options: the choices of section 3.4.
      seed: of leaves that are random, as in training from scratch.
      origin: our name -> names in the file, for the report.
      where: the file, for the report.
      class_names: {head: names by class id} of the source and of `config`, 'label' for an only head; as far as known.

    Returns:
      (nested parameters of `ViViT(config)`, the report).

    Raises:
      ConversionError: whatever differs and cannot be converted, all of it at once.
    """
    flat = {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    work = _Adaptation(flat, source, config, options, origin or {}, class_names)
    work.run(seed)
    report = Report(f"{where}: {in_words(source)}", in_words(config), tuple(work.entries))
    return flax.traverse_util.unflatten_dict(work.result, sep="/"), report


class _Adaptation:
    """The work of `adapt`: moves leaves from `given` to `result`, and notes what became of each."""

    def __init__(
        self,
        given: dict[str, np.ndarray],
        source: ViViTConfig,
        config: ViViTConfig,
        options: InitFrom,
        origin: Mapping[str, Iterable[str]],
        class_names: tuple[Names, Names],
    ):
        self.given, self.source, self.config, self.options, self.origin = given, source, config, options, origin
        self.class_names = class_names
        self.target = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
        self.result: dict[str, np.ndarray] = {}
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self._fresh: dict[str, str] = {}
        self._used: set[str] = set()
        self.pixels = ""
        factorised = config.attention == "factorised_encoder"
        self.ours = "spatial_encoder" if factorised else "encoder"
        self.theirs = "spatial_encoder" if source.attention == "factorised_encoder" else "encoder"

    def run(self, seed: int) -> None:
        """All leaves; raises ConversionError with everything that does not fit."""
        self._check()
        if not self.problems:
            self._fold_pixels()
            self._tokenizer()
            self._layers()
            self._class_token(self.ours, self.theirs)
            self._positions()
            self._temporal_encoder()
            self._heads()
        for name in self.target:
            if name not in self.result and name not in self._fresh and not self.problems:
                self.problems.append(f"{name}: nothing in the weights fills it")
        for name, array in self.result.items():
            if name not in self.target or array.shape != self.target[name].shape:
                wanted = self.target[name].shape if name in self.target else "no such leaf"
                self.problems.append(f"{name}: {array.shape} from the weights, {wanted} in the model")
        if self.problems:
            raise ConversionError(
                f"the weights ({in_words(self.source)}) cannot start this model ({in_words(self.config)})",
                self.problems,
            )
        self._initialise(seed)
        self.result = {name: self.result[name] for name in self.target}
        order = {name: place for place, name in enumerate(self.target)}
        self.entries.sort(key=lambda entry: order.get(entry.name, len(order)))
        for name in self.given:
            if name not in self._used:
                raise AssertionError(f"{name} is not accounted for")  # a mistake of this module, not of the user

    def _check(self) -> None:
        for name in (*_SAME, *INHERITED_FIELDS):
            ours, theirs = getattr(self.config, name), getattr(self.source, name)
            if ours != theirs:
                self.problems.append(f"{name} is {theirs} in the weights, {ours} in the model")
        patch, other = self.source.tubelet_size[1:], self.config.tubelet_size[1:]
        if patch != other:
            self.problems.append(f"patches are {patch} pixels in the weights, {other} in the model (tubelet_size)")

    def _put(self, name: str, array: np.ndarray, theirs: str, outcome: str = "loaded", how: str = "") -> None:
        """A leaf of the model, made from one of the weights."""
        self.result[name] = np.ascontiguousarray(array, dtype=self.target[name].dtype) if name in self.target else array
        self._used.add(theirs)
        files = list(self.origin.get(theirs, ()))
        if theirs.startswith("tokenizer/") and self.pixels:
            how = f"{how}; {self.pixels}" if how else self.pixels
        label = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}" if files else theirs
        self.entries.append(Entry(name, outcome, f"{label}; {how}" if how else label))

    def _copy(self, ours: str, theirs: str, how: str = "") -> None:
        """All leaves under a path."""
        for name in [name for name in self.given if name == theirs or name.startswith(f"{theirs}/")]:
            self._put(ours + name.removeprefix(theirs), self.given[name], name, how=how)

    def _drop(self, path: str, why: str) -> None:
        """All leaves of the weights under a path that nothing has used."""
        for name in self.given:
            if name not in self._used and (name == path or name.startswith(f"{path}/")):
                self._used.add(name)
                self.entries.append(Entry(name, "dropped", why))

    def _new(self, path: str, why: str) -> None:
        """All leaves of the model under a path start as from scratch."""
        for name in self.target:
            if name == path or name.startswith(f"{path}/"):
                self._fresh[name] = why

    def _fold_pixels(self) -> None:
        """The weights' own normalisation of pixels, where it is not ours, goes into the embedding."""
        mean, std = self.options.pixel_mean, self.options.pixel_std
        if mean is None or std is None or {*mean, *std} == {0.5}:
            return
        leaves = ("tokenizer/kernel", "tokenizer/bias")
        try:
            folded = fold_normalisation(*(self.given[name] for name in leaves), mean, std)
        except ValueError as error:
            self.problems.append(str(error))
            return
        self.given |= dict(zip(leaves, folded, strict=True))
        self.pixels = f"pixels' mean {mean} and std {std} folded in"

    def _tokenizer(self) -> None:
        ours, given = self.config, self.given["tokenizer/kernel"]
        choice = self.options.embedding
        if choice == "random":
            self._drop("tokenizer", "embedding = random")
            self._new("tokenizer", "embedding = random")
            return
        old = given.shape[0] if given.ndim == 5 else None
        new = ours.tubelet_size[0] if ours.tokenizer == "tubelet" else None
        self._copy("tokenizer/bias", "tokenizer/bias")
        if old == new:
            self._put("tokenizer/kernel", given, "tokenizer/kernel")
        elif new is None:
            how = f"summed over {old} frames: the answer to a clip that stands still"
            self._put("tokenizer/kernel", given.sum(axis=0), "tokenizer/kernel", "resized", how)
        else:
            shrinking = old is not None and old > new
            central = choice == "central_frame" or (choice is None and old is None)
            if shrinking and choice == "central_frame":
                self.problems.append(
                    f"embedding='central_frame' cannot shorten tubelets from {old} to {new} frames; "
                    "use filter_inflation"
                )
                return
            made = central_frame(given, new) if central else filter_inflation(given, new)
            what = "central frame (eq. 9)" if central else "filter inflation (eq. 8)"
            how = f"{what} from {'an image' if old is None else f'{old} frames'} to {new} frames"
            self._put("tokenizer/kernel", made, "tokenizer/kernel", "resized", how)

    def _layers(self) -> None:
        ours, theirs = f"{self.ours}/layers", f"{self.theirs}/layers"
        three = self.config.attention == "factorised_self_attention"
        was_three = self.source.attention == "factorised_self_attention"
        self._copy(f"{self.ours}/norm", f"{self.theirs}/norm")
        for part in ("norm_mlp", "mlp"):
            self._copy(f"{ours}/{part}", f"{theirs}/{part}")
        for part in ("norm", "attention"):
            single = {"norm": "norm_attention", "attention": "attention"}[part]
            space = f"{theirs}/{part}_space" if was_three else f"{theirs}/{single}"
            self._copy(f"{ours}/{part}_space" if three else f"{ours}/{single}", space)
            if three and was_three:
                self._copy(f"{ours}/{part}_time", f"{theirs}/{part}_time")
            elif was_three:
                self._drop(f"{theirs}/{part}_time", "the model has one attention in a block; it takes the spatial one")
            elif three:
                self._temporal_attention(f"{ours}/{part}_time", space)

    def _temporal_attention(self, ours: str, space: str) -> None:
        choice = self.options.temporal_attention
        if choice == "random":
            self._new(ours, "temporal_attention = random")
            return
        self._copy(ours, space, f"temporal_attention = {choice}: a copy of the spatial one")
        if choice == "zero":
            why = "temporal_attention = zero: a block starts as the image model's"
            for name in [name for name in self.result if name.startswith(f"{ours}/out/")]:
                self.result[name] = np.zeros_like(self.result[name])
                self.entries = [entry for entry in self.entries if entry.name != name]
                self.entries.append(Entry(name, "initialised", why))

    def _class_token(self, ours: str, theirs: str) -> None:
        name = f"{theirs}/class_token"
        if f"{ours}/class_token" in self.target and name in self.given:
            self._copy(f"{ours}/class_token", name)
        elif f"{ours}/class_token" in self.target:
            self._new(f"{ours}/class_token", "the weights have no class token")
        else:
            self._drop(name, "the model has no class token, it averages the tokens")

    def _positions(self) -> None:
        theirs, ours = f"{self.theirs}/position_embedding", f"{self.ours}/position_embedding"
        (old_t, *old_space), (n_t, *space) = self.source.grid, self.config.grid
        factorised, was_factorised = "spatial" in self.ours, "spatial" in self.theirs
        slot, field = _split(self.given[theirs], f"{self.theirs}/class_token" in self.given)
        field = field.reshape(*([] if was_factorised else [old_t]), *old_space, -1)
        steps = []
        if factorised and not was_factorised:
            if old_t > 1:
                steps.append(f"averaged over {old_t} times")
            field = field.mean(axis=0)
        repeated = not factorised and (was_factorised or old_t == 1)
        if repeated and not was_factorised:
            field = field[0]
        grid = space if factorised or repeated else [n_t, *space]
        if tuple(grid) != field.shape[:-1]:
            steps.append(f"from {_times(field.shape[:-1])} to {_times(grid)}, linear")
            field = resize_grid(field, grid)
        if repeated:
            field = np.broadcast_to(field, (n_t, *field.shape))
            steps.append(f"repeated {n_t} times")
        self._put_positions(ours, theirs, slot, field.reshape(-1, field.shape[-1]), steps)

    def _put_positions(
        self, ours: str, theirs: str, slot: np.ndarray | None, field: np.ndarray, steps: list[str]
    ) -> None:
        """Positions with the class token's slot in front, where the model has one."""
        token = f"{ours.rpartition('/')[0]}/class_token" in self.target
        if token and slot is None:
            slot = np.zeros((1, field.shape[-1]), field.dtype)
            steps = [*steps, "the class token's at zero"]
        elif not token and slot is not None:
            steps = [*steps, "without the class token's"]
        whole = np.concatenate([slot, field]) if token else field
        self._put(ours, whole, theirs, "resized" if steps else "loaded", ", ".join(steps))

    def _temporal_encoder(self) -> None:
        name = "temporal_encoder"
        wanted = self.config.attention == "factorised_encoder" and self.config.temporal_layers
        there = self.source.attention == "factorised_encoder" and self.source.temporal_layers
        if not there:
            self._new(name, "the weights have no temporal encoder")
        elif not wanted:
            self._drop(name, "the model has no temporal encoder")
        elif self.options.temporal_encoder == "random":
            self._drop(name, "temporal_encoder = random")
            self._new(name, "temporal_encoder = random")
        elif self.source.temporal_layers != self.config.temporal_layers:
            self.problems.append(
                f"temporal_layers is {self.source.temporal_layers} in the weights, {self.config.temporal_layers} in "
                "the model; temporal_encoder='random' starts the temporal encoder anew"
            )
        else:
            self._copy(f"{name}/layers", f"{name}/layers")
            self._copy(f"{name}/norm", f"{name}/norm")
            self._class_token(name, name)
            theirs = f"{name}/position_embedding"
            slot, field = _split(self.given[theirs], f"{name}/class_token" in self.given)
            n_t, steps = self.config.grid[0], []
            if n_t != field.shape[0]:
                steps, field = [f"from {field.shape[0]} to {n_t} times, linear"], resize_grid(field, [n_t])
            self._put_positions(theirs, theirs, slot, field, steps)

    def _heads(self) -> None:
        ours, theirs = self.config.representation_size, self.source.representation_size
        if not ours:
            self._drop("pre_logits", "the model has no pre-logits layer")
        elif not theirs:
            self._new("pre_logits", "the weights have no pre-logits layer")
        elif ours != theirs:
            self.problems.append(f"representation_size is {theirs} in the weights, {ours} in the model")
        else:
            self._copy("pre_logits", "pre_logits")
        plan, problems = decide(
            self.options.head, self.source, self.config, self.class_names, same_features=bool(ours) == bool(theirs)
        )
        self.problems += problems
        for leaf, decision in plan.items():
            if not decision.kept:
                self._new(leaf, decision.why)
                continue
            for name in [name for name in self.given if name.startswith(f"{leaf}/")]:
                values = self.given[name]
                self._put(
                    name, values if decision.order is None else values[..., decision.order], name, how=decision.why
                )
        for leaf in sorted(leaf_name(name) for name, _ in self.source.heads):
            self._drop(leaf, plan[leaf].why if leaf in plan else "the model has no such head")

    def _initialise(self, seed: int) -> None:
        """The leaves that start as from scratch."""
        names = [name for name in self._fresh if name in self.target]
        for name, array in fresh_leaves(self.config, names, seed).items():
            self.result[name] = array
            self.entries.append(Entry(name, "initialised", self._fresh[name]))


def _split(positions: np.ndarray, token: bool) -> tuple[np.ndarray | None, np.ndarray]:
    """(the class token's slot [1, d] or None, the others [N, d])."""
    return (positions[:1], positions[1:]) if token else (None, positions)


def _times(grid: Iterable[int]) -> str:
    return " x ".join(map(str, grid))
