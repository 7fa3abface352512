"""Settings that follow from the data set and the weights, where a config leaves them open: see configs/finetune.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.config.fields import field_of
from vivit_jax.models import ViViTConfig

# Besides these, the fields of `model`, which are open in every config.
DERIVED = (
    *("data.name", "batch_size", "num_epochs", "loss.name", "checkpoint.best_metric", "augment.mixup"),
    *("optimizer.learning_rate", "optimizer.warmup_epochs", "optimizer.layer_decay"),
    *("input.stride", "input.sampling", "input.short_side"),
    *("evaluation.every_epochs", "evaluation.patience", "evaluation.temporal_views", "evaluation.spatial_views"),
)
_OF_VIDEO_MODELS = ("attention", "tokenizer", "tubelet_size", "num_frames", "temporal_layers")


def derive(
    fields: Mapping[str, Any],
    *,
    videos: int = 1000,
    num_frames: Sequence[int] = (250,),
    fps: float = 25.0,
    frame_size: Sequence[float] = (256.0, 340.0),
    heads: Sequence[str] = ("label",),
    multi_label: frozenset[str] = frozenset(),
    weights: ViViTConfig | None = None,
) -> dict[str, Any]:
    """Returns the fields of a config with a value where a derived one is None.

    `num_frames`, int [N], are those stored; frame rate and (height, width) are medians, `weights` is the model of
    `init_from.path`. The defaults are for a data set that is not known.
    """
    fields = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}

    def fill(path: str, value: Any) -> Any:
        section, name = field_of(fields, path)
        section[name] = value if section.get(name) is None else section[name]
        return section[name]

    # Model: that of the weights; for those of an image model, Model 2. From scratch a small one, whose tubelets cover
    # eight frames: as accurate as shorter ones, and faster (docs/finetuning.md).
    model, frames, short_side = fields["model"], np.asarray(num_frames), min(frame_size)
    named = model.get("name") is not None
    scratch = weights is None and not named
    if weights is not None and not named:
        names = ("hidden_size", "num_layers", "num_heads", "mlp_dim", "classifier", "image_size")
        for name in (*names, *(_OF_VIDEO_MODELS if weights.num_frames > 1 else ())):
            fill(f"model.{name}", getattr(weights, name) or None)  # masked pretraining has no temporal layers
        fill("model.tubelet_size", (2, *weights.tubelet_size[1:]))
    elif scratch:
        width = fill("model.hidden_size", 128)
        for name, value in {"num_heads": max(1, width // 32), "mlp_dim": 4 * width, "num_layers": 3}.items():
            fill(f"model.{name}", value)
        fill("model.classifier", "gap")
    factorised = fill("model.attention", "spatiotemporal" if scratch else "factorised_encoder") == "factorised_encoder"
    # Where the positions of times are random anyway: the order of frames is learned sooner (docs/study.md).
    random = factorised and (weights is None or weights.num_frames == 1 or not weights.temporal_layers)
    fill("model.temporal_position_std", 1.0 if random or weights is None else 0.0)
    clip_frames = fill("model.num_frames", 8 if scratch and np.median(frames) < 24 else 16)
    if scratch:  # about seven rows of tokens, of the whole frame; 112 pixels at most
        scale = min(112 / short_side, 7 / 8)
        patch = 4 * int(np.clip(round(scale * short_side / 28), 1, 4))
        _, *patch = fill("model.tubelet_size", (8 if clip_frames % 8 == 0 else clip_frames, patch, patch))
        sides = [min(scale * side, 2 * scale * short_side) for side in frame_size]
        fill("model.image_size", tuple(max(round(side / p), 1) * p for side, p in zip(sides, patch, strict=True)))
    height, width = np.broadcast_to(fill("model.image_size", 224), (2,))

    # Clips: segments where one video in ten is too short for a clip, or nine are short enough to be seen as a whole,
    # else the longest stride at which nine of ten need no loop. Frames are at most 0.16 s apart.
    longest = max(1, round(0.16 * fps))
    short, long = np.quantile(frames, (0.1, 0.9))
    whole = short < clip_frames or long <= clip_frames * longest
    sampling = fill("input.sampling", "segments" if whole else "random_start")
    fitting = int(np.clip(short // clip_frames, 1, longest))
    stride = fill("input.stride", 1 if sampling == "segments" else fitting)
    fill("input.short_side", round(min(height, width) * 8 / 7))
    covered = clip_frames * stride / np.median(frames)
    fill("evaluation.temporal_views", 1 if covered > 0.9 else 2 if covered > 0.4 else 4)
    shape = frame_size[1] / frame_size[0] * height / width
    fill("evaluation.spatial_views", 3 if max(shape, 1 / shape) > 1.25 else 1)

    # Length: for more videos fewer epochs, but more steps; twice as many from scratch and after masked pretraining.
    without_labels = weights is None or (weights.num_frames > 1 and weights.num_classes is None)
    pretraining = fields["pretrain"]["mask_ratio"] > 0  # needs many, and mixes no clips
    epochs = np.clip(np.sqrt(1000 / videos) * (100 if without_labels else 50), 20, 300)
    epochs = fill("num_epochs", float(round(epochs * (4 if pretraining else 1))))
    fill("augment.mixup", 0.0 if pretraining or fields["input"]["clips_per_video"] > 1 else 0.8)
    batch_size = fill("batch_size", 16 if videos < 500 else 32 if videos < 4000 else 64)
    if fields.get("num_steps") is not None:  # replaces the epochs
        epochs = fields["num_steps"] * batch_size / (videos * fields["input"]["clips_per_video"])
    fill("optimizer.warmup_epochs", epochs / 10)
    fill("evaluation.every_epochs", max(1.0, epochs / 20))
    fill("evaluation.patience", 10)
    # Adam's scaling rules: sqrt(batch) (arXiv:2205.10287), 1 / width (arXiv:2203.03466, table 3); VideoMAE-B's order.
    width = ViViTConfig.from_name(model["name"]).hidden_size if named else model["hidden_size"]
    fill("optimizer.learning_rate", float(f"{1e-3 * np.sqrt(batch_size / 32) * 96 / width:.2g}"))
    fill("optimizer.layer_decay", 1.0 if weights is None else 0.75)

    kind = "mean_average_precision" if multi_label.intersection(heads[:1]) else "top1"
    head = "action" if {"verb", "noun"} <= {*heads} and not multi_label else "".join(heads[:1])
    metric = kind if len(heads) == 1 else f"{head}/{kind}"
    fill("checkpoint.best_metric", "loss" if pretraining else metric)
    fill("loss.name", "sigmoid" if multi_label else "softmax")
    fill("data.name", "kinetics400")
    return fields
