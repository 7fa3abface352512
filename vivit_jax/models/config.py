"""What a ViViT is made of: one frozen, hashable value that names every choice of the paper's section 3."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

ATTENTIONS = {
    "spatiotemporal": "Model 1",
    "factorised_encoder": "Model 2",
    "factorised_self_attention": "Model 3",
    "factorised_dot_product": "Model 4",
}
TOKENIZERS = ("tubelet", "uniform_frames")
CLASSIFIERS = ("token", "gap")
ACTIVATIONS = ("gelu_tanh", "gelu")
ATTENTION_ORDERS = ("time_space", "space_time")
ATTENTION_BACKENDS = ("xla", "tiled")
DTYPES = ("float32", "bfloat16", "float64")
NARROWER = {"float32": ("float32", "bfloat16"), "bfloat16": ("float32", "bfloat16"), "float64": ()}
REMATS = ("none", "dots", "full")
# What pretrained weights were trained with, the model must compute with.
INHERITED_FIELDS = ("activation", "layer_norm_eps", "qkv_bias", "attention_logit_cap")

# The backbones of ViT and BERT (section 4.1): name -> fields.
BACKBONES: Mapping[str, Mapping[str, int]] = {
    "Ti": {"num_layers": 12, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3},
    "S": {"num_layers": 12, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 6},
    "B": {"num_layers": 12, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
    "L": {"num_layers": 24, "hidden_size": 1024, "mlp_dim": 4096, "num_heads": 16},
    "H": {"num_layers": 32, "hidden_size": 1280, "mlp_dim": 5120, "num_heads": 16},
}
_NAME = re.compile(r"ViViT-(?P<backbone>\w+)/(?P<h>\d+)(?:x(?P<w>\d+))?x(?P<t>\d+)")


@dataclasses.dataclass(frozen=True)
class ViViTConfig:
    """The architecture of a ViViT (section 3). Frozen and hashable; normalised and checked when it is made.

    Attributes:
      hidden_size: d, the width of a token.
      num_layers: L, the blocks of the encoder; of the spatial encoder in Model 2.
      num_heads: N_H, attention heads; must divide d.
      mlp_dim: width of the MLP's hidden layer.
      attention: `spatiotemporal` (Model 1), `factorised_encoder` (Model 2), `factorised_self_attention`
        (Model 3) or `factorised_dot_product` (Model 4); section 3.3.
      tokenizer: `tubelet` or `uniform_frames`; section 3.2.
      tubelet_size: (t, h, w) in frames and pixels. With `uniform_frames` one frame in t is embedded, in
        patches h x w.
      num_frames: T, the frames of a clip.
      image_size: the pixels of a frame, one number for a square or (height, width).
      in_channels: C of a frame.
      classifier: `token` (a class token) or `gap` (average of all tokens). None chooses: `token` for Models 1
        and 2, `gap` for Models 3 and 4, which have no class token.
      num_classes: classes of the only head; a mapping or pairs head -> classes for several heads; None for no
        head, the model then returns what would have entered it.
      temporal_layers: L_t, the blocks of Model 2's temporal encoder; 0 is the average-pool baseline. Other
        models do not look at it.
      frame_pooling: Model 2 makes one vector of each frame before its temporal encoder. False keeps all tokens:
        the temporal encoder runs along time for each place of the frame by itself, as in VideoPrism
        (arXiv:2402.13217); the same parameters, no class token.
      representation_size: width of a dense layer with tanh before the head; None for none.
      dropout_rate: in [0, 1), on the embedded tokens, after attention and in the MLP.
      attention_dropout_rate: in [0, 1), on the attention weights.
      stochastic_depth_rate: in [0, 1), that of the last layer; layer i of L drops its branches with rate * i
        / (L - 1).
      stochastic_depth_rescale: divide a kept branch by its probability of being kept. False is the published
        code's own behaviour: no rescaling, and no stochastic depth at all in Model 3.
      activation: `gelu_tanh` (the tanh approximation, as published) or `gelu` (exact).
      layer_norm_eps: epsilon of every LayerNorm.
      qkv_bias: biases on the query, key and value projections.
      attention_order: Model 3's first and second axis, `time_space` (as published) or `space_time`.
      attention_logit_cap: c > 0 bounds the attention's logits softly, c tanh(logits / c), before the softmax; 50 in
        VideoPrism's released models (arXiv:2402.13217). None for none.
      attention_backend: `xla`, or `tiled` (a few queries at a time: less memory, and faster on CPUs from
        about a thousand tokens); see `vivit_jax.models.attention`.
      dtype: of the compute: `float32`, `bfloat16`, or `float64` (needs jax_enable_x64; meant for oracles).
        Parameters are float32 (float64 with `float64`): the master weights, from which each product casts what it
        uses. With `bfloat16` the tokeniser, the residual stream, softmax, the last LayerNorm and the head stay float32.
      residual_dtype: of the residual stream, and so of what is kept of each layer for the backward pass under
        `remat="full"`; None for float32 (float64 with `float64`). `bfloat16` halves it and rounds after every branch.
      gradient_dtype: in which the gradients of the encoders' kernels leave the devices to be summed over the mesh:
        `float32` or `bfloat16`; None for `dtype`. See `vivit_jax.models.dense`.
      scan_layers: compile one layer and loop over it (short compilation), or unroll (False). The same
        parameters, the same numbers.
      remat: what the backward pass recomputes layer by layer: `none`; `dots`, all but the outputs of the
        dense layers; `full`, all but the input of a layer.
      remat_temporal: the same for Model 2's temporal encoder; None for as `remat` says.

    Raises:
      ValueError: a value out of its range, or two that do not fit together; the message names the value, the
        limit and the way out.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    attention: str = "spatiotemporal"
    tokenizer: str = "tubelet"
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    num_frames: int = 32
    image_size: int | tuple[int, int] = 224
    in_channels: int = 3
    classifier: str | None = None
    num_classes: int | tuple[tuple[str, int], ...] | Mapping[str, int] | None = 400
    temporal_layers: int = 4
    frame_pooling: bool = True
    representation_size: int | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    stochastic_depth_rescale: bool = True
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_order: str = "time_space"
    attention_logit_cap: float | None = None
    attention_backend: str = "xla"
    dtype: str = "float32"
    residual_dtype: str | None = None
    gradient_dtype: str | None = None
    scan_layers: bool = False
    remat: str = "none"
    remat_temporal: str | None = None

    def __post_init__(self) -> None:
        self._normalise()
        self._check_numbers()
        self._check_fit()

    def _normalise(self) -> None:
        """Lists to tuples, mappings to pairs: so that equal configs are equal, and hashable."""
        _choose("attention", self.attention, tuple(ATTENTIONS))
        _choose("tokenizer", self.tokenizer, TOKENIZERS)
        _choose("activation", self.activation, ACTIVATIONS)
        _choose("attention_order", self.attention_order, ATTENTION_ORDERS)
        _choose("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        _choose("dtype", self.dtype, DTYPES)
        _choose("remat", self.remat, REMATS)
        _choose("remat_temporal", self.remat_temporal, (None, *REMATS))
        for name in ("residual_dtype", "gradient_dtype"):
            _choose(name, getattr(self, name), (None, *NARROWER[self.dtype]))
        self._set("frame_pooling", bool(self.frame_pooling))
        if self.classifier is None:
            self._set("classifier", "token" if self._allows_class_token else "gap")
        _choose("classifier", self.classifier, CLASSIFIERS)
        self._set("tubelet_size", _integers("tubelet_size", self.tubelet_size, 3, "(frames, height, width)"))
        if not isinstance(self.image_size, int):
            size = self.image_size
            many = hasattr(size, "__len__")
            self._set(
                "image_size",
                _integers("image_size", size if many else [size], 2 if many else 1, "(height, width)"),
            )
            if len(set(self.image_size)) == 1:  # a square is one number
                self._set("image_size", self.image_size[0])
        heads = self.num_classes
        if hasattr(heads, "items"):
            heads = tuple(heads.items())
        if isinstance(heads, (list, tuple)):
            self._set("num_classes", tuple((str(name), _integer(f"num_classes[{name}]", n)) for name, n in heads))

    def _check_numbers(self) -> None:
        positive = ["hidden_size", "num_layers", "num_heads", "mlp_dim", "num_frames", "in_channels"]
        optional = [name for name in ("num_classes", "representation_size") if getattr(self, name) is not None]
        if isinstance(self.num_classes, tuple):
            optional.remove("num_classes")
            names = [name for name, _ in self.num_classes]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"num_classes={self.num_classes} must name one head or more, each name once")
            for name, classes in self.num_classes:
                _at_least(f"num_classes[{name}]", classes, 1)
                if not re.fullmatch(r"\w+", name):
                    raise ValueError(
                        f"head name {name!r} must be letters, digits and underscores: it names a parameter"
                    )
        for name in positive + optional:
            self._set(name, _at_least(name, _integer(name, getattr(self, name)), 1))
        self._set(
            "temporal_layers",
            _at_least("temporal_layers", _integer("temporal_layers", self.temporal_layers), 0),
        )
        for name, size in [
            *zip("thw", self.tubelet_size, strict=True),
            *zip("hw", self.image_shape, strict=True),
        ]:
            _at_least(f"tubelet_size or image_size along {name}", size, 1)
        for name in ("dropout_rate", "attention_dropout_rate", "stochastic_depth_rate"):
            rate = self._set(name, float(getattr(self, name)))
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name}={rate} must lie in [0, 1): at 1 nothing is left; 0 turns it off")
        if not 0.0 < self._set("layer_norm_eps", float(self.layer_norm_eps)) < 1.0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must lie in (0, 1); the published value is 1e-6")
        cap = self.attention_logit_cap
        if cap is not None and not 0.0 < self._set("attention_logit_cap", float(cap)) < math.inf:
            raise ValueError(f"attention_logit_cap={cap} must be above 0 and finite; None for no cap")
        for name in ("stochastic_depth_rescale", "qkv_bias", "scan_layers"):
            self._set(name, bool(getattr(self, name)))

    def _check_fit(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; "
                f"choose a number that does, e.g. {math.gcd(self.num_heads, self.hidden_size)}"
            )
        _divides("num_frames", self.num_frames, "tubelet_size's frames", self.tubelet_size[0])
        for side, size, patch in zip(("height", "width"), self.image_shape, self.tubelet_size[1:], strict=True):
            _divides(f"image_size's {side}", size, f"tubelet_size's {side}", patch)
        if not self.frame_pooling:
            self._check_unpooled_frames()
        if self.classifier == "token" and not self._allows_class_token:
            raise ValueError(
                f"classifier='token' does not fit attention={self.attention!r}: "
                f"{ATTENTIONS[self.attention]} has no class token (section 3.3); use classifier='gap'"
            )
        if self.attention == "factorised_dot_product" and self.num_heads % 2:
            raise ValueError(
                f"num_heads={self.num_heads} is odd: factorised_dot_product gives half of the heads to "
                "time and half to space (section 3.3, Model 4); use an even number that divides hidden_size"
            )

    def _check_unpooled_frames(self) -> None:
        if self.attention != "factorised_encoder":
            raise ValueError(
                f"frame_pooling=False does not fit attention={self.attention!r}: only Model 2 pools frames; "
                "use attention='factorised_encoder', or frame_pooling=True"
            )
        if self.temporal_layers < 1:
            raise ValueError(
                f"frame_pooling=False does not fit temporal_layers={self.temporal_layers}: all tokens are kept "
                "for the temporal encoder; use 1 layer or more, or frame_pooling=True"
            )
        if self.classifier == "token":
            raise ValueError(
                "classifier='token' does not fit frame_pooling=False: a class token would be pooled with the places "
                "of its frame; use classifier='gap', or frame_pooling=True"
            )

    def _set(self, name: str, value: Any) -> Any:
        object.__setattr__(self, name, value)
        return value

    @property
    def _allows_class_token(self) -> bool:
        return self.attention == "spatiotemporal" or (self.attention == "factorised_encoder" and self.frame_pooling)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of a frame in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip."""
        return (self.num_frames, *self.image_shape, self.in_channels)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(n_t, n_h, n_w), the tokens along time, height and width (section 3.2)."""
        t, h, w = self.tubelet_size
        return (self.num_frames // t, self.image_shape[0] // h, self.image_shape[1] // w)

    @property
    def head_dim(self) -> int:
        """d / N_H, the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def param_dtype(self) -> str:
        """The dtype of the parameters, and of all that stays wide under bfloat16 compute: 'float32' or 'float64'."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def heads(self) -> tuple[tuple[str | None, int], ...]:
        """(name, classes) of each head; one nameless head for a number, no head for None."""
        if self.num_classes is None:
            return ()
        return ((None, self.num_classes),) if isinstance(self.num_classes, int) else self.num_classes

    @property
    def name(self) -> str:
        """The paper's name, 'ViViT-B/16x2'; 'ViViT-custom/16x2' for a backbone that is not in the table."""
        sizes = {field: getattr(self, field) for field in BACKBONES["B"]}
        backbone = next((name for name, row in BACKBONES.items() if row == sizes), "custom")
        t, h, w = self.tubelet_size
        return f"ViViT-{backbone}/{h}x{t}" if h == w else f"ViViT-{backbone}/{h}x{w}x{t}"

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> ViViTConfig:
        """The config that a name of the paper stands for: 'ViViT-B/16x2' is backbone B, tubelets of 16 x 16
        pixels, 2 frames.

        Args:
          name: 'ViViT-{Ti,S,B,L,H}/{pixels}x{frames}', or '/{height}x{width}x{frames}' where they differ.
          **overrides: any field of the config.

        Raises:
          ValueError: the name does not read so, its backbone is not in the table, or a field does not exist
            or fit.
        """
        match = _NAME.fullmatch(name)
        if match is None or match["backbone"] not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(f"{name!r} is not a model's name; write 'ViViT-B/16x2' with a backbone of {known}")
        tubelet = (int(match["t"]), int(match["h"]), int(match["w"] or match["h"]))
        return cls.from_dict({**BACKBONES[match["backbone"]], "tubelet_size": tubelet, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """All fields as values that JSON can hold; `from_dict` gives an equal config back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        heads = self.num_classes
        fields["num_classes"] = dict(heads) if isinstance(heads, tuple) else heads
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ViViTConfig:
        """A config from (some of) its fields; those left out take their defaults.

        Raises:
          ValueError: a field does not exist, or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"ViViTConfig has no field {', '.join(unknown)}; its fields: {', '.join(known)}")
        return cls(**fields)


def _choose(name: str, value: Any, options: tuple[str | None, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(str, options))}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r} must be a whole number")
    return int(value)


def _integers(name: str, values: Any, length: int, meaning: str) -> tuple[int, ...]:
    if not hasattr(values, "__len__") or isinstance(values, str) or len(values) != length:
        raise ValueError(f"{name}={values!r} must be {length} whole numbers {meaning}")
    return tuple(_integer(name, value) for value in values)


def _at_least(name: str, value: int, limit: int) -> int:
    if value < limit:
        raise ValueError(f"{name}={value} must be at least {limit}")
    return value


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        low = value // by * by
        options = f"{low} or {low + by}" if low else f"{by}"
        raise ValueError(f"{name}={value} is not divided by {by_name}={by}; use {options}, or another tubelet")
