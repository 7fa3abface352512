"""Section 3.4: initial parameters of a model from those of another, image or video, leaf by leaf.

Every leaf of the model is loaded, resized or initialised, every leaf of the weights used or dropped; the report lists
them with the reason. Any other difference between the two models is an error.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.config.sections import InitFrom
from vivit_jax.convert import heads
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.report import Entry, Report, describe_model
from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.models.config import INHERITED_FIELDS


def adapt(
    params: Mapping[str, Any],
    source: ViViTConfig,
    config: ViViTConfig,
    options: InitFrom,
    *,
    seed: int = 0,
    origin: Mapping[str, str] | None = None,
    where: str = "parameters",
    class_names: tuple[heads.ClassNames, heads.ClassNames] = ({}, {}),
) -> tuple[dict[str, Any], Report]:
    """Fits the parameters of one model to another: (nested parameters of `ViViT(config)`, the report).

    `params` are nested or flat, of the model `source`, any of ours or an image ViT. `class_names` are those of `source`
    and of `config`, as far as they are known; `origin` (`Loaded.origin`) and `where` (the file) are for the report. The
    weights take pixels in [-1, 1], whatever `options.pixel_mean`: `OpenedWeights.load` has folded another range in.
    ConversionError lists all differences that cannot be converted.
    """
    flat = {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    adaptation = _Adaptation(flat, source, config, options, origin or {}, class_names, seed)
    adaptation.run()
    models = f"{where}: {describe_model(source)}", describe_model(config)
    report = Report(*models, tuple(adaptation.entries), tuple(adaptation.warnings))
    return flax.traverse_util.unflatten_dict(adaptation.params, sep="/"), report


# Why leaves of the model start as in training from scratch (`missing`), and leaves of weights are dropped (`unused`).
_REASONS = tomllib.loads(Path(__file__).with_name("reasons.toml").read_text(encoding="utf-8"))


@dataclasses.dataclass
class _Adaptation:
    """Fills `params` from `source_params` and records the outcome of every leaf."""

    source_params: dict[str, np.ndarray]
    source: ViViTConfig
    config: ViViTConfig
    options: InitFrom
    origin: Mapping[str, str]
    class_names: tuple[heads.ClassNames, heads.ClassNames]
    seed: int

    def __post_init__(self):
        self.target = flax.traverse_util.flatten_dict(abstract_params(self.config), sep="/")
        self.params: dict[str, np.ndarray] = {}
        self.entries: list[Entry] = []
        self._random: list[str] = []  # names of leaves that start as in training from scratch
        self._used: set[str] = set()  # names of the weights
        # Whether both models have a temporal encoder; whether (the model, the weights) are of Model 3.
        self._temporal_encoders = all("temporal_encoder/norm/scale" in x for x in (self.target, self.source_params))
        self._models_3 = [c.attention == "factorised_self_attention" for c in (self.config, self.source)]
        same = bool(self.config.representation_size) == bool(self.source.representation_size)
        models = self.source, self.config, self.class_names
        self._heads, self.problems = heads.decide(self.options.head, *models, same_features=same)
        self.warnings = [decision.warning for decision in self._heads.values() if decision.warning]

    def run(self) -> None:
        """Fills all leaves; raises ConversionError with all that does not fit."""
        self._check_configs()
        if not self.problems:
            for name in self.target:
                self._fill(name)
        for name, array in self.params.items():
            if array.shape != (expected := self.target[name].shape):
                self.problems.append(f"{name}: {array.shape} from the weights, {expected} in the model")
        if self.problems:
            models = f"({describe_model(self.source)}) cannot initialise this model ({describe_model(self.config)})"
            raise ConversionError(f"the weights {models}", self.problems)
        no_encoder = {} if self._temporal_encoders else {"temporal_encoder/": "the model has no temporal encoder"}
        for name in self.source_params:
            if name not in self._used:
                why = self._chosen(name) or _matching(no_encoder | _REASONS["unused"], name)
                assert why, f"{name} of the weights is not accounted for"
                self.entries.append(Entry(name, "dropped", why))
        self.params |= random_leaves(self.config, self._random, self.seed)
        self.params = {name: self.params[name] for name in self.target}

    def _check_configs(self) -> None:
        names = ["hidden_size", "num_layers", "num_heads", "mlp_dim", "in_channels", *INHERITED_FIELDS]
        if self.config.representation_size and self.source.representation_size:
            names.append("representation_size")
        if self._temporal_encoders and self.options.temporal_encoder == "load":
            names.append("temporal_layers")
        way_out = {"temporal_layers": "; temporal_encoder='random' reinitialises the temporal encoder"}
        for name in names:
            value, source_value = getattr(self.config, name), getattr(self.source, name)
            if value != source_value:
                problem = f"{name} is {source_value} in the weights, {value} in the model"
                self.problems.append(problem + way_out.get(name, ""))
        patch, source_patch = self.config.tubelet_size[1:], self.source.tubelet_size[1:]
        if patch != source_patch:
            self.problems.append(f"patches are {source_patch} pixels in the weights, {patch} in the model")

    def _chosen(self, name: str) -> str | None:
        """Returns why a leaf starts as in training from scratch though the weights may have it; None: it does not."""
        module, options = name.split("/")[0], self.options
        if module == "tokenizer" and options.embedding == "random":
            return "embedding = random"
        if module == "temporal_encoder" and options.temporal_encoder == "random" and self._temporal_encoders:
            return "temporal_encoder = random"
        if "_time/" in name and self._models_3 == [True, False] and options.temporal_attention == "random":
            return "temporal_attention = random"
        decision = self._heads.get(module)
        return decision.why if decision and not decision.kept else None

    def _source_of(self, name: str) -> str:
        """Returns the leaf of the weights from which one of the model is made; their models may differ in names.

        Model 3 has two attentions in a block, all others one, which is the spatial one.
        """
        encoder, source_encoder = (  # those that see patches
            "spatial_encoder" if config.attention == "factorised_encoder" else "encoder"
            for config in (self.config, self.source)
        )
        if not name.startswith(f"{encoder}/"):
            return name
        name = source_encoder + name.removeprefix(encoder)
        if self._models_3 == [True, False]:
            name = re.sub("/norm_(time|space)/", "/norm_attention/", name)
            return re.sub("/attention_(time|space)/", "/attention/", name)
        if self._models_3 == [False, True]:
            return name.replace("/norm_attention/", "/norm_space/").replace("/attention/", "/attention_space/")
        return name

    def _fill(self, name: str) -> None:
        """Loads, resizes or initialises a leaf of the model."""
        source, choice = self._source_of(name), self.options.temporal_attention
        module, _, leaf = name.partition("/")
        if why := self._chosen(name) or (source not in self.source_params and _matching(_REASONS["missing"], name)):
            self._random.append(name)
            self.entries.append(Entry(name, "initialised", why))
        elif source not in self.source_params:
            self.problems.append(f"{name}: nothing in the weights fills it")
        elif name == "tokenizer/kernel":
            self._embedding(name)
        elif leaf == "position_embedding":
            self._positions(module, source.split("/")[0])
        elif module in self._heads:
            decision = self._heads[module]
            self._put(name, self.source_params[source][..., decision.order], source, how=decision.why)
        elif "_time/" not in name or self._models_3 != [True, False]:
            self._put(name, self.source_params[source], source)
        elif "/out/" in name and choice == "zero":
            self.params[name] = np.zeros_like(self.source_params[source], self.target[name].dtype)
            why = "temporal_attention = zero: a block starts as the image model's"
            self.entries.append(Entry(name, "initialised", why))
        else:
            how = f"temporal_attention = {choice}: a copy of the spatial one"
            self._put(name, self.source_params[source], source, how=how)

    def _put(self, name: str, array: np.ndarray, source: str, outcome: str = "loaded", how: str = "") -> None:
        """Fills a leaf of the model from the leaf `source` of the weights."""
        self.params[name] = np.ascontiguousarray(array, dtype=self.target[name].dtype)
        self._used.add(source)
        origin = self.origin.get(source, source)
        self.entries.append(Entry(name, outcome, f"{origin}; {how}" if how else origin))

    def _embedding(self, name: str) -> None:
        kernel, choice = self.source_params[name], self.options.embedding
        # Frames of a tubelet, None for a 2-D embedding.
        old = kernel.shape[0] if kernel.ndim == 5 else None
        new = self.config.tubelet_size[0] if self.config.tokenizer == "tubelet" else None
        if old == new:
            self._put(name, kernel, name)
        elif new is None:
            how = f"summed over {old} frames: the response to a static clip"
            self._put(name, kernel.sum(axis=0), name, "resized", how)
        elif old is not None and old > new and choice == "central_frame":
            problem = f"embedding='central_frame' cannot shorten tubelets from {old} to {new} frames"
            self.problems.append(f"{problem}; use filter_inflation")
        else:
            central = choice == "central_frame" or (choice is None and old is None)
            resized = central_frame(kernel, new) if central else filter_inflation(kernel, new)
            method = "central frame (eq. 9)" if central else "filter inflation (eq. 8)"
            how = f"{method} from {'an image' if old is None else f'{old} frames'} to {new} frames"
            self._put(name, resized, name, "resized", how)

    def _positions(self, encoder: str, source_encoder: str) -> None:
        """Resizes the positions of an encoder; that of the class token, the first, stays."""
        name, source = (f"{of}/position_embedding" for of in (encoder, source_encoder))
        had_token = f"{source_encoder}/class_token" in self.source_params
        has_token = f"{encoder}/class_token" in self.target
        grid, new = _grid_of(source_encoder, self.source), _grid_of(encoder, self.config)
        token, field = np.split(self.source_params[source], [had_token])
        field, steps = field.reshape(*grid, -1), []
        if encoder == "spatial_encoder" and grid[0] > 1:
            steps.append(f"averaged over {grid[0]} times")
            field = field.mean(axis=0, keepdims=True)
        resized = (1 if field.shape[0] == 1 else new[0], *new[1:])  # a single time is repeated
        if resized != field.shape[:-1]:
            sizes = zip(*((n, m) for n, m in zip(field.shape, resized, strict=False) if max(n, m) > 1), strict=True)
            times = " times" if encoder == "temporal_encoder" else ""
            steps.append(f"from {' to '.join(' x '.join(map(str, size)) for size in sizes)}{times}, linear")
            field = resize_grid(field, resized)
        if field.shape[0] < new[0]:
            steps.append(f"repeated {new[0]} times")
            if std := self.config.temporal_position_std:
                steps.append(f"plus a random vector for each time (standard deviation {std:g})")
                field = field + std * np.random.default_rng(self.seed).standard_normal((new[0], 1, 1, field.shape[-1]))
        field = np.broadcast_to(field, (*new, field.shape[-1])).reshape(-1, field.shape[-1])
        if has_token:
            field = np.concatenate([token if had_token else np.zeros_like(field[:1]), field])
        if has_token != had_token:
            steps.append("the class token's at zero" if has_token else "without the class token's")
        self._put(name, field, source, "resized" if steps else "loaded", ", ".join(steps))


def _grid_of(encoder: str, config: ViViTConfig) -> tuple[int, int, int]:
    """Returns (times, rows, columns) of the positions of an encoder; Model 2's have one time, or one place."""
    n_t, n_h, n_w = config.grid
    return {"spatial_encoder": (1, n_h, n_w), "temporal_encoder": (n_t, 1, 1)}.get(encoder, config.grid)


def random_leaves(config: ViViTConfig, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Initialises some leaves of a model as training from scratch with this seed does; the others are not computed."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = ViViT(config).init(key, jnp.zeros((1, *config.video_shape)))["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return {name: flat[name] for name in names}

    return jax.device_get(jax.jit(init)(jax.random.key(seed))) if names else {}


def _matching(table: Mapping[str, str], name: str) -> str | None:
    """Returns the value of the first pattern that matches the start of a name; None where none does."""
    return next((value for pattern, value in table.items() if re.match(pattern, name)), None)


def resize_grid(positions: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Resizes position embeddings [n_1, ..., n_k, d] to [*grid, d] by linear interpolation with the corners in place.

    An axis of which one position is left has its mean.
    The published code uses `scipy.ndimage.zoom` of order 1 too, but treats every grid as a square.
    """
    import scipy.ndimage  # here, since it takes 0.3 s

    if tuple(grid) == positions.shape[:-1]:
        return positions
    wide = positions if positions.dtype == np.float64 else positions.astype(np.float32)
    wide = wide.mean(axis=tuple(axis for axis, new in enumerate(grid) if new == 1), keepdims=True)
    factors = [new / old for new, old in zip(grid, wide.shape[:-1], strict=True)]
    # By default a last place that rounding puts outside the old grid would be zero.
    return scipy.ndimage.zoom(wide, (*factors, 1.0), order=1, mode="nearest").astype(positions.dtype)


def central_frame(kernel: np.ndarray, t: int) -> np.ndarray:
    """Central frame initialisation, eq. 9: E = [0, ..., E_image, ..., 0], the kernel at frame t // 2.

    `kernel` is [h, w, C, d] of an image model, or [s, h, w, C, d] of tubelets with s <= t frames, whose own central
    frame moves to frame t // 2; the result [t, h, w, C, d].
    """
    kernel = kernel[None] if kernel.ndim == 4 else kernel
    frames = kernel.shape[0]
    if frames > t:
        raise ValueError(f"central_frame would drop {frames - t} of the {frames} frames; use filter_inflation")
    start = t // 2 - frames // 2
    return np.pad(kernel, ((start, t - frames - start), *[(0, 0)] * (kernel.ndim - 1)))


def filter_inflation(kernel: np.ndarray, t: int) -> np.ndarray:
    """Filter inflation, eq. 8: E = 1/t [E_image, ..., E_image].

    Generalised to tubelets of s frames: each new frame takes the part of the old kernel that it covers in time. The sum
    over the frames, the response to a static clip, stays the same. Shapes are those of `central_frame`.
    """
    kernel = kernel[None] if kernel.ndim == 4 else kernel
    frames = kernel.shape[0]
    if frames == t:
        return kernel
    edges, new_edges = np.linspace(0, 1, frames + 1), np.linspace(0, 1, t + 1)
    low = np.maximum(edges[None, :-1], new_edges[:-1, None])
    high = np.minimum(edges[None, 1:], new_edges[1:, None])
    share = np.maximum(high - low, 0) * frames  # [t, s]: the share of an old frame that a new one covers
    return np.tensordot(share, kernel, axes=1).astype(kernel.dtype)
