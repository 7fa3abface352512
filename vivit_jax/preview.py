"""Draws the first clips of a training batch before and after augmentation on the device.

    python -m vivit_jax.preview --config=configs/moving_digits.py --out=clips.png
    python -m vivit_jax.preview --config=configs/moving_digits.py --out=clips.gif --config.augment.cutmix=1.0 --step=100

The clips are exactly those of that training step: the same input pipeline, the same random draws.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from vivit_jax import finetuning
from vivit_jax.augment import AugmentConfig, swap_pairs
from vivit_jax.config import flags as command_line
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_data
from vivit_jax.data.video import encode
from vivit_jax.train_step import SINGLE_HEAD, step_key
from vivit_jax.train_step.step import augment_batch
from vivit_jax.utils import plots, storage
from vivit_jax.utils.logs import configure_logging

MAX_FRAMES = 8  # of a clip
_GAP = 2  # white pixels between frames
_INCHES = 1.35  # height of a frame in the picture


@dataclasses.dataclass(frozen=True)
class Preview:
    """N clips before and after augmentation on the device, with captions: of mixed clips, the classes and shares."""

    before: np.ndarray  # uint8 [N, T, H, W, 3], from the input pipeline, cropped and flipped
    after: np.ndarray  # uint8 [N, T, H, W, 3], the model's input before it is scaled to [-1, 1]
    captions_before: list[str]
    captions_after: list[str]


def preview(experiment: Experiment, clips: int = 4, step: int = 0) -> Preview:
    """Returns the first clips (at most a batch) of a step's training batch, before and after augmentation.

    Raises FileNotFoundError for a missing data set, ConfigError or ValueError for a wrong config.
    """
    train_set, _ = open_data(experiment.data)
    spec = experiment.clip_spec(experiment.model_config(train_set.heads))
    clips = min(clips, experiment.batch_size)
    rows = (0, min(clips + clips % 2, experiment.batch_size))  # whole pairs: mixup and cutmix mix neighbours
    options = dataclasses.replace(experiment.data, cache=False, prefetch=1, resize_on_device=False)
    order = experiment.batch_size, experiment.seed, step
    with pipeline.train_batches(train_set, spec, *order, rows, options) as batches:
        batch = next(batches)
    augment = jax.jit(lambda key, batch: augment_batch(key, batch, experiment.augment))
    augmented = jax.device_get(augment(step_key(experiment.seed, step), batch))
    pixels = (augmented["video"] + 1) * 127.5 if experiment.augment.mixes else augmented["video"]
    after = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    labels = batch["label"], batch["mask"], train_set.class_names
    texts = [captions(*labels, shares) for shares in (None, augmented.get("share"))]
    return Preview(np.array(batch["video"][:clips]), after[:clips], *(each[:clips] for each in texts))


def captions(
    labels: Mapping[str, np.ndarray],
    mask: np.ndarray,
    class_names: Mapping[str, Sequence[str]],
    shares: np.ndarray | None = None,
) -> list[str]:
    """Returns the labels of each clip as text, from {head: int [B], or multi-label float [B, C] of 0 and 1}.

    `mask` [B] is 0 where a record could not be read; `shares` [B] are those of the clip's own label, the rest is its
    partner's (None: clips are not mixed).
    """
    shares = np.ones(len(mask)) if shares is None else shares
    partners = np.asarray(swap_pairs(np.arange(len(mask))))

    def name(head: str, clip: int) -> str:
        label, names = labels[head][clip], class_names[head]
        if np.ndim(label):
            return " & ".join(names[i] for i in np.flatnonzero(label)) or "no label"
        return names[int(label)]

    def caption(head: str, clip: int) -> str:
        own, other = name(head, clip), name(head, partners[clip])
        if shares[clip] == 1 or own == other:
            return own
        return f"{shares[clip]:.0%} {own} + {1 - shares[clip]:.0%} {other}"

    return [
        ", ".join(caption(head, clip) if head == SINGLE_HEAD else f"{head}: {caption(head, clip)}" for head in labels)
        if mask[clip]
        else "padding: the record cannot be read"
        for clip in range(len(mask))
    ]


def contact_sheet(clips: Preview, title: str) -> Any:
    """Draws up to eight frames of each clip side by side, before augmentation and, below, after it."""
    num_frames, height, width = clips.before.shape[1:4]
    frames = np.linspace(0, num_frames - 1, min(MAX_FRAMES, num_frames)).round().astype(int)
    columns, rows = max(_INCHES * len(frames) * width / height, 6.0), 2 * len(clips.before)
    size = columns, (_INCHES + 0.25) * rows + 0.4
    with plots.drawing(rows, figsize=size, layout="constrained") as (figure, panels):
        for below, videos, texts in ((0, clips.before, clips.captions_before), (1, clips.after, clips.captions_after)):
            for clip, (video, text) in enumerate(zip(videos, texts, strict=True)):
                padded = np.pad(video[frames], ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
                axes = panels[2 * clip + below]
                axes.imshow(np.concatenate(list(padded), axis=1)[:, :-_GAP], interpolation="nearest")
                caption = f"{clip} {('before', 'after')[below]}: {plots.readable(text, 150)}"
                axes.set_title(textwrap.fill(caption, int(16 * columns)), fontsize=8, loc="left")
                axes.set_axis_off()
        title = f"{title}; frames {', '.join(map(str, frames))} of each clip"
        figure.suptitle(textwrap.fill(title, int(13 * columns)), fontsize=9)
    return figure


def animation(clips: Preview, title: str) -> Iterator[np.ndarray]:
    """Yields the frames of a video, uint8 [H, W, 3] with even sides: clips before and, below, after augmentation."""
    size = 2.4 * max(len(clips.before), 2), 6.4
    with plots.drawing(2, len(clips.before), figsize=size, dpi=100) as (figure, panels):
        images = []
        for clip, (axes, text) in enumerate(zip(panels.reshape(2, -1).T, clips.captions_after, strict=True)):
            axes[0].set_title(textwrap.fill(f"{clip}: {plots.readable(text, 100)}", 30), fontsize=8)
            for video, each in zip((clips.before[clip], clips.after[clip]), axes, strict=True):
                images.append((each.imshow(video[0], interpolation="nearest"), video))
                each.set_axis_off()
        figure.suptitle(textwrap.fill(title, int(13 * size[0])), fontsize=9)
        figure.set_layout_engine("tight")
    for frame in range(clips.before.shape[1]):
        for image, video in images:
            image.set_data(video[frame])
        yield plots.to_array(figure)
        figure.set_layout_engine("none")  # that of the first frame stays


def describe(experiment: Experiment, step: int) -> str:
    """Returns the title of the picture: data set, step, and the augmentation that is on."""
    fields, defaults = dataclasses.asdict(experiment.augment), dataclasses.asdict(AugmentConfig())
    changed = [f"{name}={value}" for name, value in fields.items() if value != defaults[name]]
    augmentation = ", ".join(changed) if experiment.augment.enabled else "no augmentation on the device"
    return "\n".join(textwrap.wrap(f"{experiment.data.name}, step {step}; {augmentation}", 110))


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    configure_logging()
    with command_line.exit_on(ValueError, OSError):
        out = storage.path(values.out)
        if (suffix := out.suffix.lower()) not in (".png", *encode.ANIMATIONS):
            raise ValueError(f"--out={out} must end in .png, or in {', '.join(encode.ANIMATIONS)} for moving pictures")
        experiment = finetuning.experiment_of(values.config)
        clips, title = preview(experiment, values.clips, values.step), describe(experiment, values.step)
        if suffix == ".png":
            plots.save(contact_sheet(clips, title), out)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            encode.write_video(out, animation(clips, title), fps=8)
        print(out)


def define_flags() -> None:
    """Defines the flags of the program; not on import, since other programs have flags of the same names."""
    command_line.define_config("Config: a file, or a packaged config's name. --config.FIELD=VALUE overrides a field.")
    flags.DEFINE_string("out", None, "Picture to write: .png, or moving .mp4, .gif or .webp.")
    flags.DEFINE_integer("clips", 4, "How many clips.", lower_bound=1)
    flags.DEFINE_integer("step", 0, "The step of the run whose batch is shown.", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    command_line.run(main, required=("config", "out"), verbosity=logging.WARNING)
