"""Flags of the programs that read video files with a model, and the files that their arguments name."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from typing import Any

from absl import app, flags, logging

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config import flags as command_line
from vivit_jax.config.sections import EVALUATION_DTYPES
from vivit_jax.data.annotations.video_files import Listing, list_videos
from vivit_jax.predict import Predictor
from vivit_jax.utils import logs, storage


def define_flags() -> None:
    """Defines the flags of the model; not on import, since other programs have flags of the same names."""
    flags.DEFINE_string("workdir", None, "A run, whose best checkpoint is used, or the folder of one step.")
    flags.DEFINE_string("checkpoint", None, "In its place, weights in any format that vivit_jax.convert reads.")
    define_inference()


def define_inference() -> None:
    """Defines the flags of `inference_options`."""
    flags.DEFINE_integer("temporal_views", None, "Clips over the video's length. Default: the config's.", lower_bound=1)
    flags.DEFINE_integer("spatial_views", None, "Crops of each clip, 1 to 3. Default: the config's.")
    flags.DEFINE_enum("weights", "params", ["params", "ema"], "The parameters, or their EMA.")
    flags.DEFINE_enum("dtype", None, EVALUATION_DTYPES, "Of the compute. Default: the config's evaluation.dtype, auto.")


def inference_options() -> dict[str, Any]:
    """Returns the arguments of `Predictor` that are flags."""
    return {name: flags.FLAGS[name].value for name in ("temporal_views", "spatial_views", "weights", "dtype")}


def start(arguments: list[str], **options: bool) -> tuple[Predictor, list[str]]:
    """Returns the model of the flags and the videos of the arguments; ends the program where there are none."""
    values, files = flags.FLAGS, list(videos(arguments))
    if not files:
        raise app.UsageError("name at least one video file, folder or pattern")
    logs.configure_logging()
    with command_line.exit_on(checkpointing.CheckpointError, ValueError, OSError):
        if (values.workdir is None) == (values.checkpoint is None):
            raise ValueError("give --workdir, a run, or --checkpoint, a checkpoint or pretrained weights")
        return Predictor(values.workdir or values.checkpoint, **inference_options(), **options), files


def videos(arguments: Iterable[str]) -> Iterator[str]:
    """Yields the videos of each argument: a file, a folder, or a pattern (`**` for any folders below).

    A folder stands for all videos below it, which may be folders of numbered pictures; one with such pictures is a
    video itself. What does not exist is yielded as it is, and is an error when it is read.
    """
    for argument in arguments:
        found = [argument]
        if not storage.is_remote(argument) and not os.path.lexists(argument):
            found = sorted(glob.glob(argument, recursive=True)) or [argument]
        for path in found:
            listing = Listing()
            with contextlib.suppress(Exception):  # what cannot be listed is an error when it is read
                listing = list_videos(path)
            if listing.videos and listing.left_alone:
                logging.warning("%s: left alone, as no videos by their suffix: %s", path, listing.others())
            yield from listing.videos or [path]
