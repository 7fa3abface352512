"""Order of the training stream, computed by arithmetic: position -> data set, video.

Position p = step * batch_size + row. Slot q = p // clips is a video, whose `clips` clips are adjacent. Slots come in
blocks; each block has a fixed number of slots for every data set (`slots`), shuffled by (seed, block). Use u of a data
set of n videos is its u-th slot from the beginning: epoch u // n, index u % n in that epoch's permutation, a stateless
shuffle by (seed, data set, epoch). With one data set, slot and use are the same.

So the state of the stream is the step. A start computes one group, the blocks whose order is computed at once (about
8192 slots, fewer for small data sets), and of each data set the permutations of the epochs that it reaches into.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from vivit_jax.data.host_tf import tf

# Streams of random numbers, which must not share seeds. The order of data set i > 0 is stream _ORDERS + i.
_ORDER, _CLIP, _SLOTS, _ORDERS = 0, 1, 2, 1000
# Most slots in a group.
_GROUP = 8192


def block_slots(weights: Sequence[float], limit: int = 1000) -> tuple[int, ...]:
    """Returns the slots of each data set in the shortest block of that exact ratio, else of `limit`, rounded."""
    values = np.asarray(weights, np.float64)
    shares = values / values.sum()
    for size in range(len(values), limit + 1):
        slots = np.rint(shares * size)
        if (np.abs(slots - shares * size) < 1e-9 * size).all() and (slots >= 1).all():
            return tuple(int(x) for x in slots)
    slots = np.floor(shares * limit)
    extra = np.argsort(-(shares * limit - slots), kind="stable")[: limit - int(slots.sum())]
    slots[extra] += 1
    if (slots < 1).any():
        less = f"less than a {limit}th of all weights ({values.sum():g}): raise it or leave the data set out"
        raise ValueError(f"weight {values[slots < 1][0]:g} of a mixture is {less}")
    return tuple(int(x) for x in slots)


@dataclasses.dataclass(frozen=True)
class Order:
    """The video at each position; videos are numbered through all data sets.

    `sizes` has the number of videos of each data set, `slots` its slots in a block, `clips` the positions of a video.
    """

    sizes: tuple[int, ...]
    seed: int
    slots: tuple[int, ...] = (1,)
    clips: int = 1

    @property
    def group(self) -> int:
        """Slots computed at once: whole blocks, and not many epochs of small data sets."""
        block = sum(self.slots)
        return max(1, min(_GROUP, 4 * max(self.sizes)) // block) * block

    def dataset(self, batch_size: int, first: int, rows: tuple[int, int]) -> tf.data.Dataset:
        """Returns (position, video) int64 [] of all positions >= `first` with a batch row in [rows[0], rows[1])."""
        group_positions = self.group * self.clips

        @tf.autograph.experimental.do_not_convert
        def of_group(number):
            position = number * group_positions + tf.range(group_positions, dtype=tf.int64)
            row = position % batch_size
            selected = (position >= first) & (row >= rows[0]) & (row < rows[1])
            videos = tf.repeat(self.videos(number), self.clips)
            return tf.boolean_mask(position, selected), tf.boolean_mask(videos, selected)

        # The next group is made ahead: the permutation of a large data set takes tens of milliseconds.
        groups = tf.data.Dataset.range(first // group_positions, 2**62).map(of_group).prefetch(1)
        return groups.flat_map(lambda *pair: tf.data.Dataset.from_tensor_slices(pair))

    def videos(self, number: tf.Tensor) -> tf.Tensor:
        """Returns the videos of group `number` of slots: int64 [group]."""
        source, use = self._slots(number)
        videos = tf.zeros([self.group], tf.int64)
        for dataset, first in enumerate(np.cumsum([0, *self.sizes[:-1]]).tolist()):
            slots = tf.where(source == dataset)
            found = first + self._look_up(dataset, tf.gather_nd(use, slots))
            videos = tf.tensor_scatter_nd_update(videos, slots, found)
        return videos

    def _slots(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the data set of each slot of a group, and which use of it the slot is: both int64 [group]."""
        slot = number * self.group + tf.range(self.group, dtype=tf.int64)
        if len(self.sizes) == 1:
            return tf.zeros_like(slot), slot
        block = sum(self.slots)
        shape = [self.group // block, block]
        key = tf.random.experimental.stateless_fold_in([self.seed, _SLOTS], number, alg="philox")
        shuffled = tf.argsort(tf.random.stateless_uniform(shape, key, dtype=tf.float64, alg="philox"), stable=True)
        template = tf.constant(np.repeat(np.arange(len(self.slots)), self.slots), tf.int64)
        source = tf.gather(template, shuffled)
        blocks = number * shape[0] + tf.range(shape[0], dtype=tf.int64)[:, None]
        use = tf.zeros(shape, tf.int64)
        for dataset, share in enumerate(self.slots):
            mask = tf.cast(source == dataset, tf.int64)
            use += mask * (blocks * share + tf.cumsum(mask, axis=1) - 1)
        return tf.reshape(source, [-1]), tf.reshape(use, [-1])

    def _look_up(self, dataset: int, use: tf.Tensor) -> tf.Tensor:
        """Returns the videos of uses `use` of a data set: int64 [K], as `use`."""
        epochs, indices = use // self.sizes[dataset], use % self.sizes[dataset]

        def add(epoch, videos):
            permutation = make_permutation(self.sizes[dataset], self.seed, epoch, dataset)
            return epoch + 1, tf.where(epochs == epoch, tf.gather(permutation, indices), videos)

        more = lambda epoch, _: epoch <= tf.reduce_max(epochs)  # noqa: E731
        return tf.while_loop(more, add, (tf.reduce_min(epochs), tf.zeros_like(use)))[1]

    def fingerprint(self, videos: Iterable[str] = ()) -> str:
        """Returns 16 hex digits that identify the order, and the names in `videos`.

        A checkpoint stores this, a resumed run compares it: TensorFlow's random numbers may change with its version.
        """
        digest = hashlib.sha256()
        for dataset, size in enumerate(self.sizes):
            for epoch in (0, 1):
                permutation = make_permutation(size, self.seed, tf.constant(epoch, tf.int64), dataset)
                digest.update(permutation.numpy().tobytes())
        digest.update(clip_draws(self.seed, tf.constant(0, tf.int64), 8).numpy().tobytes())
        if len(self.sizes) > 1 or self.clips > 1:
            digest.update(repr((self.sizes, self.slots, self.clips)).encode())
            digest.update(self._slots(tf.constant(0, tf.int64))[0].numpy().tobytes())
        for name in videos:
            digest.update(name.encode() + b"\0")
        return digest.hexdigest()[:16]


def make_permutation(size: int, seed: int, epoch: tf.Tensor, dataset: int = 0) -> tf.Tensor:
    """Returns the order of a data set's videos in one of its epochs: int64 [size]; `dataset`: index in the mixture."""
    stream = _ORDER if dataset == 0 else _ORDERS + dataset
    key = tf.random.experimental.stateless_fold_in([seed, stream], epoch, alg="philox")
    return tf.random.experimental.stateless_shuffle(tf.range(size, dtype=tf.int64), key, alg="philox")


def clip_draws(seed: int, position: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the random draws of the clip at `position`: float64 [count], uniform in [0, 1)."""
    key = tf.random.experimental.stateless_fold_in([seed, _CLIP], position)
    return tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox")
