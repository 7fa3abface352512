"""The pixels that weights of Hugging Face expect, as the image processor beside them says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit_jax.convert.engine import ConversionError

EMBEDDING = ("tokenizer/kernel", "tokenizer/bias")


@dataclasses.dataclass(frozen=True)
class Processor:
    """A normalisation of pixels x in [0, 1]: (x - mean) / std, one value for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_ours(self) -> bool:
        """Whether pixels become [-1, 1], as all our models take them."""
        return all(abs(value - 0.5) < 1e-6 for value in (*self.mean, *self.std))

    def __str__(self) -> str:
        """Returns the range of the pixels, for messages."""
        ends = {(round(-m / s, 3) + 0.0, round((1 - m) / s, 3)) for m, s in zip(self.mean, self.std, strict=True)}
        return " or ".join(f"[{low:g}, {high:g}]" for low, high in sorted(ends))

    def warning(self, flags: str) -> str:
        """Returns what is taken, and the flags (with this prefix) that fold this into the embedding."""
        mean, std = (",".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return (
            f"the image processor beside the weights scales pixels to {self}; it is ignored, since our models take "
            "[-1, 1], as in the authors' training. If the weights were trained with it, fold it into the embedding: "
            f"{flags}pixel_mean={mean} {flags}pixel_std={std}"
        )

    def fold_into(self, params: dict[str, np.ndarray]) -> None:
        """Converts the embedding among flat parameters to one of v = 2 x - 1 in [-1, 1], exactly.

        (x - mean) / std = v / (2 std) + (1/2 - mean) / std; without padding the constant goes into the bias. The kernel
        is [..., h, w, C, d], the bias [d]. ConversionError for another number of channels.
        """
        kernel, bias = (np.asarray(params[name]) for name in EMBEDDING)
        if not len(self.mean) == len(self.std) == (channels := kernel.shape[-2]):
            problem = f"pixel_mean={self.mean} and pixel_std={self.std} need a number for each of {channels} channels"
            raise ConversionError("the pixels do not fit the weights", [problem])
        wide, scale = kernel.astype(np.float64), np.asarray(self.std, np.float64)[:, None]
        shift = (0.5 - np.asarray(self.mean, np.float64)[:, None]) / scale
        constant = (wide * shift).sum(axis=tuple(range(kernel.ndim - 1)))
        folded = (wide / (2 * scale)).astype(kernel.dtype), (bias + constant).astype(bias.dtype)
        params.update(zip(EMBEDDING, folded, strict=True))


def read(metadata: Mapping[str, Any], channels: int) -> Processor | None:
    """Reads the image processor in `Container.metadata`; None where there is none, or it does not scale the pixels.

    `VivitImageProcessor` scales bytes p to p f - 1 (`offset`), by default with f = 1/127.5, and then normalises with
    mean and std, by default 0.5, to [-3, 1]; other processors do not subtract 1, and have f = 1/255.
    """
    fields = metadata.get("preprocessor") or {}
    kinds = [fields.get(f"{kind}_type") or "" for kind in ("image_processor", "feature_extractor", "video_processor")]
    vivit = any(kind.lower().startswith("vivit") for kind in kinds)
    if not fields or not fields.get("do_rescale", True):
        return None
    factor = 255 * fields.get("rescale_factor", 1 / 127.5 if vivit else 1 / 255)
    offset = float(fields.get("offset", vivit))
    mean, std = ((0.5 if fields.get(name) is None else fields[name]) for name in ("image_mean", "image_std"))
    if not fields.get("do_normalize", True):
        mean, std = 0.0, 1.0
    mean, std = (value if isinstance(value, list) else [value] * channels for value in (mean, std))
    return Processor(tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std))
