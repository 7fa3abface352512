"""How a video file becomes the clips of a model, as its checkpoints store it: predictions need nothing else."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from vivit_jax.config.experiment import Experiment
from vivit_jax.data import catalog
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.models import ViViTConfig

KEY = "preprocessing"  # of a checkpoint's metadata
PIXELS = "x / 127.5 - 1"  # of bytes, in all our models
_CLIP_FIELDS = ("num_frames", "image_size", "stride", "short_side", "sampling")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Frames as they are stored in records, and test clips of them."""

    clip: ClipSpec  # how clips are cut
    stored_short_side: int | None  # larger frames are first shrunk to this short side, in pixels; None: none are
    stored_fps: float | None = None  # maximum frame rate; None: that of the source
    assumed: str = ""  # what a checkpoint does not say; '' if it says everything

    def to_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint stores."""
        clip = {name: getattr(self.clip, name) for name in _CLIP_FIELDS}
        stored = {"stored_short_side": self.stored_short_side, "stored_fps": self.stored_fps}
        return clip | {"image_size": list(self.clip.image_size), "pixels": PIXELS} | stored

    @classmethod
    def of_checkpoint(cls, metadata: Mapping[str, Any], model: ViViTConfig) -> Self:
        """Reads the metadata of a checkpoint; where it is older or converted, assumes what is usual."""
        if stored := metadata.get(KEY):
            clip = ClipSpec(**{name: stored[name] for name in _CLIP_FIELDS})
            return cls(clip, stored["stored_short_side"], stored["stored_fps"])
        config = metadata["config"]
        trained = bool(metadata.get("data"))  # converted weights have no data
        if not trained and "input" not in config:
            config = {**config, "input": usual_input(model)}
        experiment = Experiment.from_config(config)
        clip, name = experiment.clip_spec(model), experiment.data.name
        short_side = catalog.DATASETS.get(name, catalog.DatasetInfo).short_side
        assumed = f"larger frames are shrunk to a short side of {short_side} pixels"
        if trained:
            assumed += ", " + (f"as by default for {name}" if name in catalog.DATASETS else "the default of a build")
        else:
            resized = f"resized to {clip.short_side}, " if clip.short_side else ""
            assumed += f", {resized}{clip.num_frames} frames of stride {clip.stride}"
        return cls(clip, short_side, assumed=assumed)


def usual_input(model: ViViTConfig, processor: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns `config.input` for weights of unknown training, as in the paper (section 4.1).

    Stride 2 for 32 frames, else 1; short side of the weights' image `processor` (JSON), else 256 for crops of 224.
    """
    size, resized = (processor or {}).get("size"), (processor or {}).get("do_resize", True)
    short_side = size.get("shortest_edge") if isinstance(size, dict) else None
    short_side = max(short_side or round(min(model.image_shape) * 256 / 224), min(model.image_shape))
    return {"stride": 2 if model.num_frames == 32 else 1, "short_side": short_side if resized else None}
