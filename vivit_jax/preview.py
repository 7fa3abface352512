"""What the model will see: the first clips of a run, before and after augmentation on the device, as a picture.

    python -m vivit_jax.preview --config=configs/moving_digits.py --out=clips.png
    python -m vivit_jax.preview --config=configs/moving_digits.py --out=clips.gif --config.augment.cutmix=1.0 --step=100

The clips are those of that step of the run, to the pixel: the same input pipeline, the same draws. A .png shows frames
side by side, a .gif moves.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags
from PIL import Image

from vivit_jax.augment import AugmentConfig, augment_pixels, mix_clips, step_keys, swap_pairs
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_data
from vivit_jax.train_step import SINGLE_HEAD, normalise, step_key
from vivit_jax.utils import plots
from vivit_jax.utils.logs import configure_logging

SUFFIXES = (".png", ".gif")
MOST_FRAMES = 8  # of a clip in a contact sheet
MOST_COLUMNS = 6  # clips side by side in an animation
SOURCE_FPS = 25.0  # an animation plays as if the videos had this rate, which Kinetics' mostly have
_GAP = 2  # white pixels between frames
_INCHES = 1.35  # height of a frame in the picture


@dataclasses.dataclass(frozen=True)
class Preview:
    """Clips before and after augmentation on the device.

    Attributes:
      before: uint8 [N, T, H, W, 3], as the input pipeline hands them over, cropped and flipped.
      after: uint8 [N, T, H, W, 3], what the model sees, but for the scaling to [-1, 1].
      labels: N captions of `before`.
      mixed: N captions of `after`: the classes with their shares where clips are mixed.
    """

    before: np.ndarray
    after: np.ndarray
    labels: list[str]
    mixed: list[str]


def preview(experiment: Experiment, clips: int = 4, step: int = 0) -> Preview:
    """The first clips of a training batch, as they come and as the model sees them.

    Args:
      experiment: the run.
      clips: N, at least 1; as many as a batch has, if it has fewer.
      step: of the run, from 0 on.

    Raises:
      FileNotFoundError: the data set is not there; the message says what belongs where.
      ConfigError, ValueError: what the config gets wrong, clips or step out of range.
    """
    if clips < 1 or step < 0:
        raise ValueError(f"clips={clips}, step={step}: there must be at least 1 clip, and the first step is 0")
    training, _ = open_data(experiment.data)
    spec = experiment.clip_spec(experiment.model_config(training.heads))
    clips = min(clips, experiment.batch_size)
    with pipeline.train_batches(
        training,
        spec,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        start_step=step,
        rows=(0, min(clips + clips % 2, experiment.batch_size)),  # whole pairs: partners are neighbours
        options=dataclasses.replace(experiment.data, cache=False, prefetch=1),
    ) as batches:
        batch = next(batches)
    seen, shares = see(batch, experiment.augment, experiment.seed, step)
    before = captions(batch["label"], batch["mask"], training.class_names)
    after = captions(batch["label"], batch["mask"], training.class_names, shares)
    return Preview(np.array(batch["video"][:clips]), seen[:clips], before[:clips], after[:clips])


def see(batch: Mapping[str, Any], config: AugmentConfig, seed: int, step: int) -> tuple[np.ndarray, np.ndarray | None]:
    """What the model sees of the first clips of a global batch in a step.

    Args:
      batch: `video` uint8 [B, T, H, W, 3], `mask` [B]; its first clips, an even number of them or all.
      config: of augmentation.
      seed, step: of the run.

    Returns:
      (uint8 [B, T, H, W, 3], float32 [B], the share of each clip's own label; None where clips are not mixed).
    """

    def program(key: jax.Array, video: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        pixels_key, mixing_key = step_keys(key)
        return mix_clips(mixing_key, normalise(augment_pixels(pixels_key, video, config)), mask, config)

    video, shares = jax.device_get(jax.jit(program)(step_key(seed, step), batch["video"], batch["mask"]))
    return np.clip(np.round((video + 1) * 127.5), 0, 255).astype(np.uint8), shares


def captions(
    labels: Mapping[str, np.ndarray],
    mask: np.ndarray,
    class_names: Mapping[str, Sequence[str]],
    shares: np.ndarray | None = None,
) -> list[str]:
    """The labels of each clip in words.

    Args:
      labels: {head: int [B], or float [B, C], 1 for each label that holds}.
      mask: [B], 0 where a record could not be read.
      class_names: {head: C names}.
      shares: [B] of the clip's own label in its mixture; the rest is its partner's.
    """
    shares = np.ones(len(mask)) if shares is None else shares
    partners = np.asarray(swap_pairs(np.arange(len(mask))))

    def name(head: str, clip: int) -> str:
        label, names = labels[head][clip], class_names[head]
        if np.ndim(label):
            return " & ".join(names[i] for i in np.flatnonzero(label)) or "no label"
        return names[int(label)]

    def words(head: str, clip: int) -> str:
        own, other = name(head, clip), name(head, partners[clip])
        if shares[clip] == 1 or own == other:
            return own
        return f"{shares[clip]:.0%} {own} + {1 - shares[clip]:.0%} {other}"

    return [
        ", ".join(words(head, clip) if head == SINGLE_HEAD else f"{head}: {words(head, clip)}" for head in labels)
        if mask[clip]
        else "padding: the record cannot be read"
        for clip in range(len(mask))
    ]


def contact_sheet(found: Preview, title: str) -> plots.plt.Figure:
    """Up to eight frames of each clip side by side, before augmentation and, below, after it."""
    clips, frames, height, width, _ = found.before.shape
    shown = np.linspace(0, frames - 1, min(MOST_FRAMES, frames)).round().astype(int)
    wide = max(_INCHES * len(shown) * width / height, 6.0)
    figure, rows = plots.plt.subplots(
        2 * clips, 1, figsize=(wide, (_INCHES + 0.25) * 2 * clips + 0.4), layout="constrained"
    )
    for clip in range(clips):
        pairs = ((found.before, "before", found.labels), (found.after, "after", found.mixed))
        for axes, (video, when, words) in zip(rows[2 * clip : 2 * clip + 2], pairs, strict=True):
            axes.imshow(_strip(video[clip, shown]), interpolation="nearest")
            axes.set_title(f"{clip} {when}: {words[clip]}", fontsize=8, loc="left")
            axes.set_axis_off()
    title = textwrap.fill(f"{title}; frames {', '.join(map(str, shown))} of each clip", int(13 * wide))
    figure.suptitle(title, fontsize=9)
    return figure


def _strip(frames: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] -> [H, T * W + gaps, 3]."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-_GAP]


def animation(found: Preview, title: str) -> list[np.ndarray]:
    """The clips side by side, before augmentation and, below, after it: T pictures, uint8 [H, W, 3]."""
    clips, frames = found.before.shape[:2]
    columns = min(clips, MOST_COLUMNS)
    rows = 2 * -(-clips // columns)
    width = max(1.9 * columns, 4.0)
    figure, panels = plots.plt.subplots(
        rows, columns, figsize=(width, 2.4 * rows + 0.4), layout="constrained", squeeze=False, dpi=100
    )
    for axes in panels.flat:
        axes.set_axis_off()
    pictures = []
    for clip in range(clips):
        row, column = 2 * (clip // columns), clip % columns
        pairs = ((found.before, "before", found.labels), (found.after, "after", found.mixed))
        for axes, (video, when, words) in zip(panels[row : row + 2, column], pairs, strict=True):
            pictures.append((axes.imshow(video[clip, 0], interpolation="nearest"), video[clip]))
            axes.set_title(textwrap.fill(f"{when}: {words[clip]}", 30), fontsize=7)
    figure.suptitle(textwrap.fill(title, int(13 * width)), fontsize=9)
    drawn = []
    for frame in range(frames):
        for picture, clip in pictures:
            picture.set_data(clip[frame])
        drawn.append(plots.to_array(figure))
    plots.close(figure)
    return drawn


def write(found: Preview, out: epath.PathLike, title: str, stride: int = 1) -> epath.Path:
    """Writes a contact sheet (.png) or an animation (.gif).

    Args:
      found: the clips.
      out: file name, whose ending decides.
      title: above the picture.
      stride: frames of the video from one of the clip to the next, for the speed of the animation.

    Raises:
      ValueError: another ending.
    """
    out = _checked(out)
    if out.suffix.lower() == ".png":
        return plots.save(contact_sheet(found, title), out)
    first, *rest = (Image.fromarray(picture) for picture in animation(found, title))
    file = io.BytesIO()
    milliseconds = max(20, round(1000 * stride / SOURCE_FPS))  # viewers slow down what is faster
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(file.getvalue())
    return out


def _checked(out: epath.PathLike) -> epath.Path:
    out = epath.Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out={out} must end in {' or '.join(SUFFIXES)}")
    return out


def describe(experiment: Experiment, step: int) -> str:
    """The title of the picture: data set, step, and the augmentation that is on."""
    config, default = experiment.augment, AugmentConfig()
    fields = [field.name for field in dataclasses.fields(config)]
    on = [f"{name}={getattr(config, name)}" for name in fields if getattr(config, name) != getattr(default, name)]
    text = (
        f"{experiment.data.name}, step {step}; {', '.join(on) if config.enabled else 'no augmentation on the device'}"
    )
    return "\n".join(textwrap.wrap(text, 110))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    values = flags.FLAGS
    configure_logging()
    try:
        out = _checked(values.out)
        run = Experiment.from_config(values.config)
        found = preview(run, values.clips, values.step)
        print(write(found, out, describe(run, values.step), run.input["stride"]))
    except (ValueError, OSError) as error:
        logging.debug("Where it came from:", exc_info=True)  # shown with --verbosity=1
        sys.exit(f"error: {error}\n(--verbosity=1 shows where it came from)")


def run() -> None:
    """Entry point."""
    # Defined here, so that this module can be imported beside others whose flags have the same names.
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file; any field can be overridden, e.g. --config.augment.erase_probability=0.5.",
        lock_config=True,
    )
    flags.DEFINE_string("out", None, "Picture to write: .png, a contact sheet, or .gif, an animation.")
    flags.DEFINE_integer("clips", 4, "How many clips.", lower_bound=1)
    flags.DEFINE_integer("step", 0, "The step of the run whose batch is shown.", lower_bound=0)
    flags.mark_flags_as_required(["config", "out"])
    logging.set_verbosity(logging.WARNING)  # the picture is the output
    app.run(main)


if __name__ == "__main__":
    run()
