"""What a pipeline runs with, and the memory that it takes at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection import sampling
from vivit_jax.data.selection.sampling import ClipSpec


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of a pipeline and its memory in bytes.

    Attributes:
      threads: examples made at the same time, by threads of the pipeline's own; None where others make them.
      prefetch: batches made ahead.
      batch_bytes: pixels of one batch.
      example_bytes: what making one example takes at most, its own pixels included.
      cache_bytes: what is kept of the records.
      service: address of the tf.data service, or None.
      flips: what flips do to labels, in words; "" where that is no matter.
    """

    threads: int | None
    prefetch: int
    batch_bytes: int
    example_bytes: int
    cache_bytes: int = 0
    service: str | None = None
    flips: str = ""

    @property
    def batches(self) -> int:
        """Batches there at once: those made ahead, the one that is put together, the one handed out."""
        return self.prefetch + 2

    @property
    def memory(self) -> int:
        """Bytes at most: batches + examples in the making + cache. Not in it: TensorFlow itself, and the index."""
        return self.batches * self.batch_bytes + (self.threads or 0) * self.example_bytes + self.cache_bytes

    def __str__(self) -> str:
        who = f"made by the tf.data service at {self.service}" if self.service else f"{self.threads} threads of its own"
        parts = [f"{self.batches} batches of {_size(self.batch_bytes)}"]
        if self.threads:
            parts.append(f"{self.threads} examples in the making with {_size(self.example_bytes)} each")
        parts.append(f"cache {_size(self.cache_bytes)}" if self.cache_bytes else "no cache")
        memory = f"memory at most {_size(self.memory)}: {', '.join(parts)}"
        flips = f"; {self.flips}" if self.flips else ""
        return f"{who}, {self.prefetch} batches ahead, order exact; {memory}{flips}"


def example_bytes(splits: Sequence[RecordSplit], spec: ClipSpec, views: tuple[int, int] | None = None) -> int:
    """Bytes that making one example takes at most.

    The records that it reads (twice: as read, and parsed), its frames as decoded (twice: one by one, and together), and
    resized (as float32, rounded, and as uint8: nine bytes a value), and the example itself. Frames pass through these
    forms one by one, so that this is an upper bound.

    Args:
      splits: that examples come from.
      spec: of the clips.
      views: (temporal, spatial) of an evaluation; None for training.
    """
    temporal, spatial = views or (1, 1)
    crop = 3 * spec.image_size[0] * spec.image_size[1]
    most = 0
    for split in splits:
        frames = np.minimum(split.num_frames.astype(np.int64), temporal * spec.num_frames)
        stored = 3 * split.height.astype(np.int64) * split.width
        rows, columns = sampling.resized(split.height, split.width, spec.short_side, *spec.image_size)
        resized = crop if views is None else 3 * rows * columns
        pixels = frames * (2 * stored + 9 * resized)
        # A clip reads from the chunk of its first frame to that of its last; views and segments read all chunks.
        chunks = split.num_chunks
        if views is None and spec.sampling == "random_start":
            chunks = np.minimum(chunks, ((spec.num_frames - 1) * spec.stride) // split.chunk_frames + 2)
        records = 2 * chunks * int(split.chunk_length.max())
        most = max(most, int((pixels + records).max()))
    return most + temporal * spatial * spec.num_frames * crop


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
