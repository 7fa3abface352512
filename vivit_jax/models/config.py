"""The architecture of a ViViT as one frozen, hashable config."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Self

from vivit_jax.models.attention_choice import ATTENTION_BACKENDS, Attention, refusal
from vivit_jax.utils.checks import at_least, one_of, within

ATTENTIONS = {
    "spatiotemporal": "Model 1",
    "factorised_encoder": "Model 2",
    "factorised_self_attention": "Model 3",
    "factorised_dot_product": "Model 4",
}
AUTO = "auto"
REMATS = ("none", "dots", "full")  # fastest first
_NARROW_DTYPES = {"float32": ("float32", "bfloat16"), "bfloat16": ("float32", "bfloat16"), "float64": ()}
# Fields that a model takes over from its pretrained weights.
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
    """The architecture of a ViViT (section 3). Values are normalised and checked when the config is made.

    Attributes:
      hidden_size, mlp_dim: d, the width of a token (`num_heads` divides it), and that of the MLP's hidden layer.
      attention: `spatiotemporal` (Model 1), `factorised_encoder` (Model 2), `factorised_self_attention` (Model 3) or
        `factorised_dot_product` (Model 4); section 3.3.
      tubelet_size: (t, h, w) in frames and pixels. `uniform_frames` embeds one frame in t, in patches h x w.
      num_frames, in_channels: T and C of a clip.
      classifier: `token` (class token) or `gap` (average of all tokens). None: `token` for Models 1 and 2, `gap` for
        Models 3 and 4, which have no class token.
      temporal_position_std: standard deviation of a random vector for each time, which the initial positions of all its
        tokens share where they are random or, from an image model, repeated (section 3.4). With 0, as published, times
        hardly differ at first, and small models learn the order of frames late or never (docs/study.md).
      pool_norm: the last LayerNorm follows the average of the tokens, as in VideoMAE's classifiers (Model 1, `gap`).
      num_classes: a number; {head: classes} or pairs for several heads; None for no head.
      temporal_layers: layers of Model 2's temporal encoder; 0 is the average-pool baseline. Not used by other models.
      dropout_rate: in [0, 1), after the position embedding, after attention and in the MLP; not of attention weights.
      stochastic_depth_rate: in [0, 1), of the last layer; layer i of L drops its branches with rate * i / (L - 1).
      stochastic_depth_rescale: divide a kept branch by its probability. False is the published code's behaviour: no
        rescaling, and no stochastic depth in Model 3.
      attention_logit_cap: c > 0 replaces the attention logits by c tanh(logits / c).
      attention_backend: `auto`, the fastest for each attention layer and device, as measured, see
        `vivit_jax.models.attention_choice`; or one by name: `xla` (stores all weights), `tiled` (in small parts: less
        memory, for CPUs), `cudnn` (NVIDIA GPUs, bfloat16) or `splash` (TPUs). The numbers are the same within rounding.
      dtype: of the compute: `float32`, `bfloat16`, or `float64` (needs jax_enable_x64; for tests). Parameters are
        float32 (or float64); so are tokenizer, residual stream, softmax, last LayerNorm and head under `bfloat16`.
      residual_dtype: of the residual stream, which is what `remat="full"` stores of each layer; None: the parameters'.
        `bfloat16` halves it and rounds after every branch.
      gradient_dtype: in which the gradients of the encoders' kernels are summed over devices, `float32` or `bfloat16`;
        None: `dtype`. See `vivit_jax.models.dense`.
      scan_layers: compile one layer and loop over it (short compilation); the parameters and numbers are the same.
      remat: what the backward pass recomputes: `none`; `dots`, all but the outputs of dense layers and of fused
        attention; `full`, all but the input of each layer.
      remat_temporal: the same for Model 2's temporal encoder; None: `remat`.

    `auto`, the default of `scan_layers` and `remat`, is decided where a train step is compiled for its devices: the
    least recomputation that fits (`vivit_jax.train_step.remat`). Elsewhere it means no recomputation, and in evaluation
    (`train=False`) a loop over the layers except on GPUs: without a backward pass the loop is as fast.
    """

    hidden_size: int = 768
    num_layers: int = 12  # L, the layers of the encoder; of the spatial encoder in Model 2
    num_heads: int = 12
    mlp_dim: int = 3072
    attention: str = "spatiotemporal"
    tokenizer: str = "tubelet"  # `tubelet` or `uniform_frames`; section 3.2
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    num_frames: int = 32
    image_size: int | tuple[int, int] = 224  # pixels of a frame, one number for a square or (height, width)
    in_channels: int = 3
    classifier: str | None = None
    temporal_position_std: float = 0.0
    pool_norm: bool = False
    num_classes: int | tuple[tuple[str, int], ...] | Mapping[str, int] | None = 400
    temporal_layers: int = 4
    representation_size: int | None = None  # width of a dense layer with tanh before the head; None for none
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    stochastic_depth_rescale: bool = True
    activation: str = "gelu_tanh"  # `gelu_tanh` (the tanh approximation, as published) or `gelu` (exact)
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_order: str = "time_space"  # Model 3's first and second axis, `time_space` (as published) or `space_time`
    attention_logit_cap: float | None = None
    attention_backend: str = "auto"
    dtype: str = "float32"
    residual_dtype: str | None = None
    gradient_dtype: str | None = None
    scan_layers: bool | str = AUTO
    remat: str = AUTO
    remat_temporal: str | None = None

    def __post_init__(self) -> None:
        one_of(
            "",
            self,
            attention=ATTENTIONS,
            tokenizer=("tubelet", "uniform_frames"),
            classifier=(None, "token", "gap"),
            activation=("gelu_tanh", "gelu"),
            attention_order=("time_space", "space_time"),
            attention_backend=ATTENTION_BACKENDS,
            dtype=_NARROW_DTYPES,
            scan_layers=(False, True, AUTO),
            remat=(*REMATS, AUTO),
            remat_temporal=(None, *REMATS),
        )
        narrow = (None, *_NARROW_DTYPES[self.dtype])
        one_of("", self, residual_dtype=narrow, gradient_dtype=narrow)
        self._normalise()
        self._check_numbers()
        self._check_fit()

    def _normalise(self) -> None:
        """Converts lists to tuples and mappings to pairs, so that equal configs are equal and hashable."""
        for name in ("dropout_rate", "attention_dropout_rate", "stochastic_depth_rate", "layer_norm_eps"):
            self._set(name, float(getattr(self, name)))
        if self.attention_logit_cap is not None:
            self._set("attention_logit_cap", float(self.attention_logit_cap))
        if self.classifier is None:
            self._set("classifier", "token" if self._allows_class_token else "gap")
        self._set("tubelet_size", _integers("tubelet_size", self.tubelet_size, 3, "(frames, height, width)"))
        size = self.image_size if hasattr(self.image_size, "__len__") else (self.image_size, self.image_size)
        height, width = _integers("image_size", size, 2, "(height, width)")
        self._set("image_size", height if height == width else (height, width))
        heads = self.num_classes
        if hasattr(heads, "items"):
            heads = tuple(heads.items())
        if isinstance(heads, (list, tuple)):
            heads = tuple((str(name), _integer(f"num_classes[{name}]", n)) for name, n in heads)
        elif heads is not None:
            heads = _integer("num_classes", heads)
        self._set("num_classes", heads)

    def _check_numbers(self) -> None:
        sizes = ("hidden_size", "num_layers", "num_heads", "mlp_dim", "num_frames", "in_channels")
        optional = () if self.representation_size is None else ("representation_size",)
        for name in (*sizes, "temporal_layers", *optional):
            self._set(name, _integer(name, getattr(self, name)))
        at_least("", self, **dict.fromkeys(sizes, 1), temporal_layers=0, representation_size=1)
        within("", self, "[0, 1)", "dropout_rate", "attention_dropout_rate", "stochastic_depth_rate")
        within("", self, "[0, inf)", "temporal_position_std")
        within("", self, "(0, 1)", "layer_norm_eps", hint="the published value is 1e-6")
        within("", self, "(0, inf)", "attention_logit_cap", hint="None for no cap")
        names = [name for name, _ in self.heads]
        if self.num_classes is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"num_classes={self.num_classes} must name one head or more, each name once")
        for name, classes in self.heads:
            if classes < 1:
                raise ValueError(f"num_classes{'' if name is None else f'[{name}]'}={classes} must be at least 1")
            if name is not None and not re.fullmatch(r"\w+", name):
                raise ValueError(f"head name {name!r} must be letters, digits and underscores: it names a parameter")

    def _check_fit(self) -> None:
        """Checks fields that depend on one another."""
        if self.hidden_size % self.num_heads:
            problem = f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}"
            raise ValueError(f"{problem}; choose a number that does, e.g. {math.gcd(self.num_heads, self.hidden_size)}")
        _check_divides("num_frames", self.num_frames, "tubelet_size's frames", self.tubelet_size[0])
        for side, size, patch in zip(("height", "width"), self.image_shape, self.tubelet_size[1:], strict=True):
            _check_divides(f"image_size's {side}", size, f"tubelet_size's {side}", patch)
        if self.classifier == "token" and not self._allows_class_token:
            reason = f"attention={self.attention!r}: {ATTENTIONS[self.attention]} has no class token (section 3.3)"
            raise ValueError(f"classifier='token' does not fit {reason}; use classifier='gap'")
        if self.pool_norm and (self.attention, self.classifier) != ("spatiotemporal", "gap"):
            raise ValueError("pool_norm=True is for Model 1 with classifier='gap'; set them, or pool_norm=False")
        cap = self.attention_logit_cap is not None
        work = Attention(1, self.head_dim, self.dtype, dropout=self.attention_dropout_rate > 0, logit_cap=cap)
        if reason := refusal(self.attention_backend, work):
            raise ValueError(f"attention_backend={self.attention_backend!r} {reason}; use 'auto'")
        if self.attention == "factorised_dot_product" and self.num_heads % 2:
            reason = "factorised_dot_product gives half of the heads to time and half to space (section 3.3, Model 4)"
            raise ValueError(f"num_heads={self.num_heads} is odd: {reason}; use an even divisor of hidden_size")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def _allows_class_token(self) -> bool:
        return self.attention in ("spatiotemporal", "factorised_encoder")

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
        """(n_t, n_h, n_w), the number of tokens along time, height and width (section 3.2)."""
        t, h, w = self.tubelet_size
        return (self.num_frames // t, self.image_shape[0] // h, self.image_shape[1] // w)

    @property
    def head_dim(self) -> int:
        """Width of one attention head, d / num_heads."""
        return self.hidden_size // self.num_heads

    @property
    def param_dtype(self) -> str:
        """The dtype of parameters, and of all that stays wide under bfloat16 compute: 'float32' or 'float64'."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def heads(self) -> tuple[tuple[str | None, int], ...]:
        """(name, classes) of each head; the name is None if there is only one."""
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
    def from_name(cls, name: str, **overrides: Any) -> Self:
        """Makes the config of a name in the paper: 'ViViT-B/16x2' has backbone B, tubelets of 16 x 16 pixels, 2 frames.

        A name is 'ViViT-{Ti,S,B,L,H}/{pixels}x{frames}', or '/{height}x{width}x{frames}' where the sides differ.
        """
        match = _NAME.fullmatch(name)
        if match is None or match["backbone"] not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(f"{name!r} is not a model's name; write 'ViViT-B/16x2' with a backbone of {known}")
        tubelet = (int(match["t"]), int(match["h"]), int(match["w"] or match["h"]))
        return cls.from_dict({**BACKBONES[match["backbone"]], "tubelet_size": tubelet, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as JSON values, from which `from_dict` makes an equal config."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        heads = self.num_classes
        return fields | {"num_classes": dict(heads) if isinstance(heads, tuple) else heads}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Makes a config from some of its fields; the others take their defaults."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"ViViTConfig has no field {', '.join(unknown)}; its fields: {', '.join(known)}")
        return cls(**fields)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r} must be a whole number")
    return int(value)


def _integers(name: str, values: Any, length: int, meaning: str) -> tuple[int, ...]:
    if not hasattr(values, "__len__") or len(values) != length:
        raise ValueError(f"{name}={values!r} must be {length} whole numbers {meaning}")
    integers = tuple(_integer(name, value) for value in values)
    if min(integers) < 1:
        raise ValueError(f"{name}={integers} must be at least 1 in each of {meaning}")
    return integers


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        low = value // divisor * divisor
        options = f"{low} or {low + divisor}" if low else f"{divisor}"
        raise ValueError(f"{name}={value} is not divided by {divisor_name}={divisor}; use {options} or another tubelet")
