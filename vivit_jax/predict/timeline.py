"""The labels of a long video over time: `segments(windows(vivit_jax.load("runs/mine"), "game.mp4", hop="2s"))`."""

import collections
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vivit_jax.data import pipeline
from vivit_jax.evaluation import metrics
from vivit_jax.predict import Predictor
from vivit_jax.utils import plots, storage


@dataclasses.dataclass(frozen=True)
class Segment:
    """The label of a window, or of adjacent ones, from `start` to `end` seconds.

    `label` is the top-ranked action, or that of each head (multi-label: those above 0.5), `probability` the product of
    theirs, and the mean over the windows. Each of these has `start`, `end` and `labels`, the `ranked` of a Prediction.
    """

    start: float
    end: float
    label: str
    probability: float
    windows: list[dict[str, Any]]

    def __str__(self) -> str:
        return f"{_clock(self.start)} - {_clock(self.end)}  {self.probability:6.1%}  {self.label}"


def windows(
    predictor: Predictor, path: storage.PathLike, hop: str = "1", stride: int | None = None, top: int = 5
) -> Iterator[Segment]:
    """Yields the windows of a video file or folder of frames as the model computes them, in bounded memory.

    A window is a clip of the model, with its stride or another, and the crops of evaluation. One starts every `hop`, in
    windows ("0.5") or seconds ("2s"); the last ends with the video. Raises VideoError, ValueError for a wrong hop.
    """
    for times, prediction in predictor.predict_views(_clips(path, predictor, hop, stride), top):
        (start, end), ranked, shown = (round(time, 3) for time in times), prediction.ranked, []
        for head in [metrics.ACTION] if metrics.ACTION in ranked else ranked:
            likely = [pair for pair in ranked[head] if pair[1] > 0.5 and head in predictor.multi_label]
            shown += likely or ranked[head][:1]
        label, probability = ", ".join(label for label, _ in shown), math.prod(share for _, share in shown)
        yield Segment(start, end, label, probability, [{"start": start, "end": end, "labels": ranked}])


def _clips(path, predictor: Predictor, hop: str, stride: int | None) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields ((start, end), uint8 [crops, T, h, w, 3]) of each window."""
    from vivit_jax.data.video import decode, encode  # need PyAV

    prepare, crops = predictor.preprocessing, predictor.experiment.evaluation.spatial_views
    if stride is None and prepare.clip.sampling == "segments":
        raise ValueError("the model's frames are spread over whole videos; for windows give a --stride, e.g. 4")
    clip = dataclasses.replace(prepare.clip, sampling="random_start", stride=stride or prepare.clip.stride)
    if not (match := re.fullmatch(r"(\d*\.?\d+)(s?)", str(hop))) or float(match[1]) <= 0:
        raise ValueError(f"--hop={hop} must be a number above 0, of windows (0.5) or seconds (2s)")
    cut = pipeline.cutter(clip.image_size, clip.short_side, crops)
    selector = encode.FrameSelector(None, None, prepare.stored_fps, lambda frame: frame)

    def stored() -> Iterator[decode.Frame]:
        for frame in decode.iterate_frames(path, short_side=prepare.stored_short_side, fps=prepare.stored_fps):
            selector.offer(frame)
            yield from selector.frames
            selector.frames.clear()
        selector.finish()
        yield from selector.frames

    kept, last, full = collections.deque(maxlen=clip.num_frames), -1, clip.num_frames
    for number, frame in enumerate(itertools.islice(stored(), 0, None, clip.stride)):
        if len(kept) == full:  # and the window ends here
            hops = math.floor((kept[0][0] if match[2] else number / full - 1) / float(match[1]) + 1e-6)
            if hops > last:
                yield (kept[0][0], frame.time), np.stack([image for _, image in kept], axis=1)
            last = max(last, hops)
        kept.append((frame.time, cut(frame.image).numpy()))
    views = np.stack([image for _, image in kept], axis=1)
    if len(kept) < full:
        views = pipeline.views_from_file(path, clip, 1, crops, prepare.stored_short_side, prepare.stored_fps)
    yield (kept[0][0], selector.times[-1] + 1 / frame.fps), views


def segments(found: Iterable[Segment]) -> Iterator[Segment]:
    """Merges adjacent windows of the same label; a moment has that of the window whose centre is nearest."""
    group, start = [], 0.0
    for window, following in itertools.pairwise(itertools.chain(found, [None])):
        group.append(window)
        if following is None or following.label != window.label:
            end = window.end
            if following is not None:
                end = round((window.start + window.end + following.start + following.end) / 4, 3)
            probability = sum(each.probability for each in group) / len(group)
            yield Segment(start, end, window.label, probability, [each.windows[0] for each in group])
            group, start = [], end


def write(path: storage.PathLike, found: Sequence[Segment], folder: storage.PathLike) -> dict[str, Any]:
    """Writes `timeline_NAME` of a file NAME.mp4: .png, .json, and .srt (subtitles); returns what the JSON holds."""
    picture, source = plots.picture_of(path, folder, "timeline")
    with plots.optional(str(path)):
        plots.save(plots.timeline(found, os.path.basename(path)), picture, source)
    cues = []
    for number, each in enumerate(found, start=1):
        times = f"{_clock(each.start)} --> {_clock(each.end)}".replace(".", ",")
        cues.append(f"{number}\n{times}\n{' '.join(each.label.split())} ({each.probability:.0%})\n")
    storage.write(picture.with_suffix(".srt"), "\n".join(cues))
    record = {"file": os.fspath(path), "segments": list(map(dataclasses.asdict, found))}
    storage.write(picture.with_suffix(".json"), json.dumps(record))
    return record


def _clock(seconds: float) -> str:
    """Formats as 01:02:03.456."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"
