"""Section 3.4: initial parameters of a model from those of another, image or video, leaf by leaf.

Every leaf of the model is loaded, resized or initialised, every leaf of the weights used or dropped; the report lists
them with the reason. Any other difference between the two models is an error.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.config.init_from import InitFrom
from vivit_jax.convert import heads
from vivit_jax.convert.engine import ConversionError
from vivit_jax.convert.report import Entry, Report, describe_model
from vivit_jax.convert.resize import central_frame, filter_inflation, fold_normalisation, resize_grid
from vivit_jax.convert.tables.native import image_model
from vivit_jax.convert.tables.rows import Hints
from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.models.config import INHERITED_FIELDS


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
    """Returns parameters of a video model initialised from those of an image ViT (section 3.4).

    `image_params` are nested (`load_model`, `load_params`); without `image_config` their shapes give it. `config` has
    the image model's activation, epsilon and biases (`initialise` sets them). For `embedding`, `temporal_attention` and
    `head` (`reinit` or `keep`) see `InitFrom`; docs/weights.md says what becomes of the other leaves.
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
    origin: Mapping[str, str] | None = None,
    where: str = "parameters",
    class_names: tuple[heads.ClassNames, heads.ClassNames] = ({}, {}),
) -> tuple[dict[str, Any], Report]:
    """Fits the parameters of one model to another: (nested parameters of `ViViT(config)`, the report).

    `params` are nested or flat, of the model `source`, any of ours or an image ViT. `class_names` are those of `source`
    and of `config`, as far as they are known; `origin` (`Loaded.origin`) and `where` (the file) are for the report.
    ConversionError lists all differences that cannot be converted.
    """
    flat = {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    adaptation = _Adaptation(flat, source, config, options, origin or {}, class_names)
    adaptation.run(seed)
    models = f"{where}: {describe_model(source)}", describe_model(config)
    report = Report(*models, tuple(adaptation.entries), tuple(adaptation.warnings))
    return flax.traverse_util.unflatten_dict(adaptation.params, sep="/"), report


@dataclasses.dataclass
class _Adaptation:
    """Fills `params` from `source_params` and records the outcome of every leaf."""

    source_params: dict[str, np.ndarray]
    source: ViViTConfig
    config: ViViTConfig
    options: InitFrom
    origin: Mapping[str, str]
    class_names: tuple[heads.ClassNames, heads.ClassNames]

    def __post_init__(self):
        self.target = flax.traverse_util.flatten_dict(abstract_params(self.config), sep="/")
        self.params: dict[str, np.ndarray] = {}
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._random: dict[str, str] = {}  # our name -> why it starts as in training from scratch
        self._used: set[str] = set()  # names of the weights
        self._folded = ""  # what was folded into the embedding
        self._encoder, self._source_encoder = _encoder_name(self.config), _encoder_name(self.source)

    def run(self, seed: int) -> None:
        """Fills all leaves; raises ConversionError with all that does not fit."""
        self._check_configs()
        if not self.problems:
            self._fold_pixels()
            self._tokenizer()
            self._layers()
            self._class_token(self._encoder, self._source_encoder)
            self._positions()
            self._temporal_encoder()
            self._heads()
        if not self.problems:
            unfilled = [name for name in self.target if name not in self.params | self._random]
            self.problems += [f"{name}: nothing in the weights fills it" for name in unfilled]
        for name, array in self.params.items():
            expected = self.target[name].shape if name in self.target else "no such leaf"
            if array.shape != expected:
                self.problems.append(f"{name}: {array.shape} from the weights, {expected} in the model")
        if self.problems:
            models = f"({describe_model(self.source)}) cannot initialise this model ({describe_model(self.config)})"
            raise ConversionError(f"the weights {models}", self.problems)
        self.params |= random_leaves(self.config, self._random, seed)
        self.entries += [Entry(name, "initialised", why) for name, why in self._random.items()]
        self.params = {name: self.params[name] for name in self.target}
        order = {name: position for position, name in enumerate(self.target)}
        self.entries.sort(key=lambda entry: order.get(entry.name, len(order)))
        assert self._used.issuperset(self.source_params), "a leaf of the weights is not accounted for"

    def _check_configs(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "mlp_dim", "in_channels", *INHERITED_FIELDS):
            value, source_value = getattr(self.config, name), getattr(self.source, name)
            if value != source_value:
                self.problems.append(f"{name} is {source_value} in the weights, {value} in the model")
        patch, source_patch = self.config.tubelet_size[1:], self.source.tubelet_size[1:]
        if patch != source_patch:
            self.problems.append(f"patches are {source_patch} pixels in the weights, {patch} in the model")

    def _put(self, name: str, array: np.ndarray, source: str, outcome: str = "loaded", how: str = "") -> None:
        """Fills a leaf of the model from the leaf `source` of the weights."""
        self.params[name] = np.ascontiguousarray(array, dtype=self.target[name].dtype) if name in self.target else array
        self._used.add(source)
        folded = self._folded if source.startswith("tokenizer/") else ""
        parts = (self.origin.get(source, source), how, folded)
        self.entries.append(Entry(name, outcome, "; ".join(part for part in parts if part)))

    def _copy(self, path: str, source: str, how: str = "") -> None:
        """Copies all leaves under a path."""
        for name in _under(source, self.source_params):
            self._put(path + name.removeprefix(source), self.source_params[name], name, how=how)

    def _drop(self, path: str, why: str) -> None:
        """Drops all unused leaves of the weights under a path."""
        for name in [name for name in _under(path, self.source_params) if name not in self._used]:
            self._used.add(name)
            self.entries.append(Entry(name, "dropped", why))

    def _reinitialise(self, path: str, why: str) -> None:
        """Lets the leaves of the model under a path start as in training from scratch; drops those of the weights."""
        self._drop(path, why)
        self._random |= dict.fromkeys(_under(path, self.target), why)

    def _fold_pixels(self) -> None:
        """Folds a normalisation of pixels other than to [-1, 1] into the embedding."""
        mean, std = self.options.pixel_mean, self.options.pixel_std
        if mean is None or std is None or {*mean, *std} == {0.5}:
            return
        leaves = ("tokenizer/kernel", "tokenizer/bias")
        try:
            folded = fold_normalisation(*(self.source_params[name] for name in leaves), mean, std)
        except ValueError as error:
            self.problems.append(str(error))
            return
        self.source_params |= dict(zip(leaves, folded, strict=True))
        self._folded = f"pixels' mean {mean} and std {std} folded in"

    def _tokenizer(self) -> None:
        name, choice = "tokenizer/kernel", self.options.embedding
        kernel = self.source_params[name]
        if choice == "random":
            self._reinitialise("tokenizer", "embedding = random")
            return
        # Frames of a tubelet, None for a 2-D embedding.
        old = kernel.shape[0] if kernel.ndim == 5 else None
        new = self.config.tubelet_size[0] if self.config.tokenizer == "tubelet" else None
        self._copy("tokenizer/bias", "tokenizer/bias")
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

    def _layers(self) -> None:
        """Fills the blocks of the joint or spatial encoder; Model 3 has two attentions in a block, all others one."""
        layers, source_layers = f"{self._encoder}/layers", f"{self._source_encoder}/layers"
        is_model_3 = self.config.attention == "factorised_self_attention"
        from_model_3 = self.source.attention == "factorised_self_attention"
        self._copy(f"{self._encoder}/norm", f"{self._source_encoder}/norm")
        if not _under(f"{self._source_encoder}/norm", self.source_params):
            self._reinitialise(f"{self._encoder}/norm", "the weights have none: theirs follows the pooling (fc_norm)")
        for part in ("norm_mlp", "mlp"):
            self._copy(f"{layers}/{part}", f"{source_layers}/{part}")
        for part, single in (("norm", "norm_attention"), ("attention", "attention")):
            source_space = f"{source_layers}/{part}_space" if from_model_3 else f"{source_layers}/{single}"
            self._copy(f"{layers}/{part}_space" if is_model_3 else f"{layers}/{single}", source_space)
            if is_model_3 and from_model_3:
                self._copy(f"{layers}/{part}_time", f"{source_layers}/{part}_time")
            elif from_model_3:
                self._drop(f"{source_layers}/{part}_time", "the model has one attention in a block, the spatial one")
            elif is_model_3:
                self._temporal_attention(f"{layers}/{part}_time", source_space)

    def _temporal_attention(self, path: str, source_space: str) -> None:
        choice = self.options.temporal_attention
        if choice == "random":
            self._reinitialise(path, "temporal_attention = random")
            return
        self._copy(path, source_space, f"temporal_attention = {choice}: a copy of the spatial one")
        if choice == "zero":
            why = "temporal_attention = zero: a block starts as the image model's"
            names = _under(f"{path}/out", self.params)
            self.params |= {name: np.zeros_like(self.params[name]) for name in names}
            self.entries = [Entry(e.name, "initialised", why) if e.name in names else e for e in self.entries]

    def _class_token(self, encoder: str, source_encoder: str) -> None:
        name, source = f"{encoder}/class_token", f"{source_encoder}/class_token"
        if name in self.target and source in self.source_params:
            self._copy(name, source)
        elif name in self.target:
            self._reinitialise(name, "the weights have no class token")
        else:
            self._drop(source, "the model has no class token, it averages the tokens")

    def _positions(self) -> None:
        """Fills the positions of the joint or spatial encoder; those of a spatial encoder have no time axis."""
        (old_t, *old_space), (n_t, *space) = self.source.grid, self.config.grid
        spatial, from_spatial = "spatial" in self._encoder, "spatial" in self._source_encoder
        field = self._field(self._source_encoder).reshape(*([] if from_spatial else [old_t]), *old_space, -1)
        steps = []
        if spatial and not from_spatial:
            if old_t > 1:
                steps.append(f"averaged over {old_t} times")
            field = field.mean(axis=0)
        repeated = not spatial and (from_spatial or old_t == 1)
        if repeated and not from_spatial:
            field = field[0]
        grid = space if spatial or repeated else [n_t, *space]
        if tuple(grid) != field.shape[:-1]:
            old, new = (" x ".join(map(str, size)) for size in (field.shape[:-1], grid))
            steps.append(f"from {old} to {new}, linear")
            field = resize_grid(field, grid)
        if repeated:
            field = np.broadcast_to(field, (n_t, *field.shape))
            steps.append(f"repeated {n_t} times")
        self._put_positions(self._encoder, self._source_encoder, field, steps)

    def _field(self, encoder: str) -> np.ndarray:
        """Returns the positions of the weights [N, d] without the class token's, which is the first."""
        positions = self.source_params[f"{encoder}/position_embedding"]
        return positions[1:] if f"{encoder}/class_token" in self.source_params else positions

    def _put_positions(self, encoder: str, source_encoder: str, field: np.ndarray, steps: list[str]) -> None:
        """Fills positions [..., d], with the class token's in front where the model has one."""
        field, source = field.reshape(-1, field.shape[-1]), f"{source_encoder}/position_embedding"
        had_token = f"{source_encoder}/class_token" in self.source_params
        if f"{encoder}/class_token" not in self.target:
            steps = [*steps, "without the class token's"] if had_token else steps
        elif had_token:
            field = np.concatenate([self.source_params[source][:1], field])
        else:
            field, steps = np.pad(field, ((1, 0), (0, 0))), [*steps, "the class token's at zero"]
        outcome = "resized" if steps else "loaded"
        self._put(f"{encoder}/position_embedding", field, source, outcome, ", ".join(steps))

    def _temporal_encoder(self) -> None:
        name = "temporal_encoder"
        depth, source_depth = self.config.temporal_layers, self.source.temporal_layers
        if not _under(name, self.source_params):
            self._reinitialise(name, "the weights have no temporal encoder")
        elif not _under(name, self.target):
            self._drop(name, "the model has no temporal encoder")
        elif self.options.temporal_encoder == "random":
            self._reinitialise(name, "temporal_encoder = random")
        elif source_depth != depth:
            problem = f"temporal_layers is {source_depth} in the weights, {depth} in the model"
            self.problems.append(f"{problem}; temporal_encoder='random' reinitialises the temporal encoder")
        else:
            self._copy(f"{name}/layers", f"{name}/layers")
            self._copy(f"{name}/norm", f"{name}/norm")
            self._class_token(name, name)
            n_t, field = self.config.grid[0], self._field(name)
            steps = [f"from {len(field)} to {n_t} times, linear"] if n_t != len(field) else []
            self._put_positions(name, name, resize_grid(field, [n_t]), steps)

    def _heads(self) -> None:
        size, source_size = self.config.representation_size, self.source.representation_size
        if not size:
            self._drop("pre_logits", "the model has no pre-logits layer")
        elif not source_size:
            self._reinitialise("pre_logits", "the weights have no pre-logits layer")
        elif size != source_size:
            self.problems.append(f"representation_size is {source_size} in the weights, {size} in the model")
        else:
            self._copy("pre_logits", "pre_logits")
        same, choice = bool(size) == bool(source_size), self.options.head
        decisions, problems = heads.decide(choice, self.source, self.config, self.class_names, same_features=same)
        self.problems += problems
        self.warnings += [decision.warning for decision in decisions.values() if decision.warning]
        for leaf, decision in decisions.items():
            if decision.kept:
                for name in _under(leaf, self.source_params):
                    self._put(name, self.source_params[name][..., decision.order], name, how=decision.why)
            else:
                self._reinitialise(leaf, decision.why)
        for head, _ in self.source.heads:
            self._drop(heads.leaf_name(head), "the model has no such head")


def random_leaves(config: ViViTConfig, names: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """Initialises some leaves of a model as training from scratch with this seed does; the others are not computed."""
    names = list(names)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = ViViT(config).init(key, jnp.zeros((1, *config.video_shape)))["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return {name: flat[name] for name in names}

    return jax.device_get(jax.jit(init)(jax.random.key(seed))) if names else {}


def _encoder_name(config: ViViTConfig) -> str:
    """Returns the name of the encoder that sees patches: Model 2's spatial encoder, or the only one."""
    return "spatial_encoder" if config.attention == "factorised_encoder" else "encoder"


def _under(path: str, names: Iterable[str]) -> list[str]:
    """Returns the names of a leaf or of all leaves under a path."""
    return [name for name in names if name == path or name.startswith(f"{path}/")]
