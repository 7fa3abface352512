"""The test views of one video, from memory or from a file, made by the code that makes those of the pipeline."""

from __future__ import annotations

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.records.reader import memory_reader
from vivit_jax.data.selection import sampling
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.video import decode
from vivit_jax.utils import storage


def views_from_frames(
    frames: np.ndarray, spec: ClipSpec, temporal_views: int = 1, spatial_views: int = 1
) -> np.ndarray:
    """The test views of a video in memory, made by the same code as those of `eval_batches`.

    Args:
      frames: uint8 [T, H, W, 3], RGB, at least one.

    Returns:
      uint8 [V, spec.num_frames, h, w, 3], temporal-major.

    Raises:
      ValueError: frames of another shape or type, or none.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 [T, H, W, 3] with T >= 1")
    size = (tf.constant(x, tf.int64) for x in frames.shape[:3])
    reader = memory_reader(tf.constant(frames))
    return clips.views(reader, tf.constant(0, tf.int64), *size, spec, temporal_views, spatial_views).numpy()


def views_from_file(
    path: storage.Place,
    spec: ClipSpec,
    temporal_views: int = 1,
    spatial_views: int = 1,
    short_side: int | None = None,
    memory_limit: int = 1 << 30,
) -> np.ndarray:
    """The test views of a video file: decoded as the builder does it, cut as `eval_batches` does it.

    Args:
      path: of the file.
      spec, temporal_views, spatial_views: as in `views_from_frames`.
      short_side: of the data set's records; larger frames are shrunk to it.
      memory_limit: bytes of frames to hold. A video beyond it is decoded twice, and only what the views need is kept.

    Returns:
      uint8 [V, spec.num_frames, h, w, 3], temporal-major.

    Raises:
      decode.VideoError: the file is not a video, or broken.
    """
    frames, count, size = [], 0, 0
    for frame in decode.iterate_frames(path, short_side=short_side):
        count, size = count + 1, size + frame.image.nbytes
        if size <= memory_limit:
            frames.append(frame.image)
    if count == len(frames):
        return views_from_frames(np.stack(frames), spec, temporal_views, spatial_views)
    frames.clear()
    needed = [sampling.clip_frames_of_view(count, spec, temporal_views, i) for i in range(temporal_views)]
    needed = np.unique(np.concatenate(needed))
    wanted = set(needed.tolist())
    again = enumerate(decode.iterate_frames(path, short_side=short_side))
    kept = np.stack([frame.image for number, frame in again if number in wanted])
    in_memory, places = memory_reader(tf.constant(kept)), tf.constant(needed, tf.int64)

    def read(video, numbers, window=None, finish=None):
        return in_memory(video, tf.searchsorted(places, tf.cast(numbers, tf.int64)), window, finish)

    shape = (tf.constant(x, tf.int64) for x in (count, *kept.shape[1:3]))
    return clips.views(read, tf.constant(0, tf.int64), *shape, spec, temporal_views, spatial_views).numpy()
