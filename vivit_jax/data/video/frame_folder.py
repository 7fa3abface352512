"""Folders of numbered pictures, the frames of a video ("rawframes"), as Jester and MMAction2 have them."""

import re
from collections.abc import Iterable

import numpy as np

from vivit_jax.utils import storage

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"))
MAX_PIXELS = 1 << 26  # of a frame; 8K has 33 million
_NAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)\.[^.]+")
# Optical flow, which MMAction2 stores beside the frames.
_FLOW = re.compile(r"(flow.*|[xyuv])[-_]*", re.IGNORECASE)


def frame_names(names: Iterable[str]) -> list[str]:
    """Returns the names of a folder that are frames, in the order of their numbers; hidden files and flow are none.

    Raises ValueError if they are those of several videos.
    """
    frames: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if name[0] != "." and name[name.rfind(".") :].lower() in PICTURE_SUFFIXES and (match := _NAME.fullmatch(name)):
            frames.setdefault(match["prefix"], []).append((int(match["number"]), name))
    if len(frames) > 1:
        frames = {prefix: of_prefix for prefix, of_prefix in frames.items() if not _FLOW.fullmatch(prefix)}
    if len(frames) > 1:
        shown = ", ".join(f"{prefix}*" for prefix in sorted(frames)[:5])
        raise ValueError(f"the pictures are not the frames of one video: {shown}")
    return [name for of_prefix in frames.values() for _, name in sorted(of_prefix)]


def output_size(size: tuple[int, int], short_side: int | None) -> tuple[int, ...]:
    """Returns `size` with a short side of `short_side` pixels; smaller sizes, and with None all, as they are."""
    shorter = min(size)
    return tuple(round(side * min(short_side or shorter, shorter) / shorter) for side in size)


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises ValueError for a frame of more than `most` pixels."""
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels; a frame may have {most:,}")


class Converter:
    """Reads pictures as RGB, uint8 [H, W, 3], all in the output size of the first."""

    def __init__(self, short_side: int | None):
        self._short_side, self._size = short_side, None

    def __call__(self, file: storage.AnyPath) -> np.ndarray:
        """Raises OSError or ValueError for a file that is no whole picture."""
        from PIL import Image, ImageOps  # of an extra, and the annotations need the names above only

        with storage.local(file) as local, Image.open(local) as picture:
            check_size(*picture.size)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {picture.mode}, of unknown range; save it with 8 bits a channel")
            if picture.mode.startswith("I;16"):  # `convert` would clip them
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            picture = picture.convert("RGB")
        self._size = self._size or output_size(picture.size, self._short_side)
        if picture.size != self._size:
            picture = picture.resize(self._size, Image.Resampling.BICUBIC)
        return np.asarray(picture)
