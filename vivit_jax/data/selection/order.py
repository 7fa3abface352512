"""The order of the training stream, which is arithmetic: position -> data set, video.

Position p = step * batch_size + row. Slot q = p // clips is a video (`clips` of its clips lie side by side). Slots come
in blocks; each block has a fixed number of slots for every data set (`slots`), shuffled by (seed, place of the block).
Use u of a data set of n videos is its u-th slot from the beginning: epoch u // n, place u % n in that epoch's
permutation, a stateless shuffle by (seed, data set, epoch). With one data set, slot and use are the same.

So the state of the stream is the step, and to begin at step N costs what beginning at 0 costs: at most two permutations
of each data set and one group of slots, whatever N.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from vivit_jax.data.host_tf import tf

# Streams of random numbers that must not share their seeds. The order of data set i > 0 is stream _ORDERS + i.
_ORDER, _CLIP, _SLOTS, _ORDERS = 0, 1, 2, 1000
# Slots whose order is computed at once, at most.
_GROUP = 8192


def block_slots(weights: Sequence[float], limit: int = 1000) -> tuple[int, ...]:
    """Slots of each data set in a block of the stream: the shortest block that gives the weights exactly, else one of
    `limit` slots, shared by largest remainder.

    Args:
      weights: of the data sets, each greater than 0; only their ratios matter.
      limit: slots of a block, at most.

    Raises:
      ValueError: a weight that is not greater than 0, or too small to get a slot in a block.
    """
    values = np.asarray(weights, np.float64)
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"weights {list(weights)} of a mixture must all be greater than 0")
    shares = values / values.sum()
    for size in range(len(values), limit + 1):
        slots = np.rint(shares * size)
        if (np.abs(slots - shares * size) < 1e-9 * size).all() and (slots >= 1).all():
            return tuple(int(x) for x in slots)
    slots = np.floor(shares * limit)
    extra = np.argsort(-(shares * limit - slots), kind="stable")[: limit - int(slots.sum())]
    slots[extra] += 1
    if (slots < 1).any():
        raise ValueError(
            f"weight {values[slots < 1][0]:g} of a mixture is less than a {limit}th of all weights ({values.sum():g}): "
            "raise it or leave the data set out"
        )
    return tuple(int(x) for x in slots)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which video stands at which position.

    Attributes:
      sizes: videos of each data set. They are counted as if the data sets lay one behind the other: the first has the
        numbers 0 to sizes[0] - 1, the next goes on from there.
      seed: of all shuffling, 0 to 2^31 - 1.
      slots: of each data set in a block.
      clips: positions that a video takes each time it comes.
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
        """(position, video) int64 [] of all positions >= `first` whose row of the batch lies in [rows[0], rows[1])."""
        group_positions = self.group * self.clips

        @tf.autograph.experimental.do_not_convert
        def step(state, number):
            state, videos = self.advance(state, number)
            position = number * group_positions + tf.range(group_positions, dtype=tf.int64)
            row = position % batch_size
            mine = (position >= first) & (row >= rows[0]) & (row < rows[1])
            return state, (tf.boolean_mask(position, mine), tf.boolean_mask(tf.repeat(videos, self.clips), mine))

        numbers = tf.data.Dataset.range(first // group_positions, 2**62)
        return numbers.scan(self.start(), step).flat_map(lambda *pair: tf.data.Dataset.from_tensor_slices(pair))

    def start(self) -> tuple[tuple[tf.Tensor, tf.Tensor], ...]:
        """The state that `advance` may start from at any group: (epoch, its permutation) of each data set."""
        return tuple((tf.constant(-1, tf.int64), tf.zeros([size], tf.int64)) for size in self.sizes)

    def advance(self, state, number: tf.Tensor):
        """The videos of group `number` of slots, int64 [group], and the state after it.

        Args:
          state: of `start` or of any earlier group; it only saves making a permutation again.
          number: int64, of the group.
        """
        source, use = self._slots(number)
        first, videos, after = 0, tf.zeros([self.group], tf.int64), []
        for place, size in enumerate(self.sizes):
            of_this = tf.where(source == place)
            kept, found = self._look_up(state[place], place, tf.gather_nd(use, of_this))
            videos = tf.tensor_scatter_nd_update(videos, of_this, first + found)
            after.append(kept)
            first += size
        return tuple(after), videos

    def _slots(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Data set of each slot of a group, and which use of that data set it is: int64 [group] both."""
        slot = number * self.group + tf.range(self.group, dtype=tf.int64)
        if len(self.sizes) == 1:
            return tf.zeros_like(slot), slot
        block = sum(self.slots)
        shape = [self.group // block, block]
        key = tf.random.experimental.stateless_fold_in(_seed(self.seed, _SLOTS), number, alg="philox")
        shuffled = tf.argsort(tf.random.stateless_uniform(shape, key, dtype=tf.float64, alg="philox"), stable=True)
        template = tf.constant(np.repeat(np.arange(len(self.slots)), self.slots), tf.int64)
        source = tf.gather(template, shuffled)
        blocks = number * shape[0] + tf.range(shape[0], dtype=tf.int64)[:, None]
        use = tf.zeros(shape, tf.int64)
        for place, share in enumerate(self.slots):
            mine = tf.cast(source == place, tf.int64)
            use += mine * (blocks * share + tf.cumsum(mine, axis=1) - 1)
        return tf.reshape(source, [-1]), tf.reshape(use, [-1])

    def _look_up(self, kept, place: int, use: tf.Tensor):
        """The videos of uses `use` [K] (rising) of a data set, and its permutation to be kept for the next group."""
        size = self.sizes[place]
        epochs, places = use // size, use % size

        def more(epoch, permutation, found):
            return epoch < tf.reduce_max(epochs)

        def next_epoch(epoch, permutation, found):
            epoch += 1
            permutation = make_permutation(size, self.seed, epoch, place)
            return epoch, permutation, tf.where(epochs == epoch, tf.gather(permutation, places), found)

        found = tf.where(epochs == kept[0], tf.gather(kept[1], places), 0)
        first = tf.maximum(kept[0], tf.reduce_min(epochs) - 1)
        epoch, permutation, found = tf.while_loop(more, next_epoch, (first, kept[1], found))
        return (epoch, tf.ensure_shape(permutation, [size])), found

    def fingerprint(self, videos: Iterable[str] = ()) -> str:
        """16 hex digits that are the same where the order is. TensorFlow does not promise its random numbers across
        versions, so a checkpoint holds this, and a resumed run compares it before it claims to go on where it was.

        Args:
          videos: names to be covered as well, of a selection that the sizes do not tell.
        """
        digest = hashlib.sha256()
        for place, size in enumerate(self.sizes):
            for epoch in (0, 1):
                digest.update(make_permutation(size, self.seed, tf.constant(epoch, tf.int64), place).numpy().tobytes())
        digest.update(clip_draws(self.seed, tf.constant(0, tf.int64), 8).numpy().tobytes())
        if len(self.sizes) > 1 or self.clips > 1:
            digest.update(repr((self.sizes, self.slots, self.clips)).encode())
            digest.update(self._slots(tf.constant(0, tf.int64))[0].numpy().tobytes())
        for name in videos:
            digest.update(name.encode() + b"\0")
        return digest.hexdigest()[:16]


def make_permutation(size: int, seed: int, epoch: tf.Tensor, place: int = 0) -> tf.Tensor:
    """The order of a data set's videos in one of its epochs: int64 [size]; `place`: of the data set in a mixture."""
    stream = _ORDER if place == 0 else _ORDERS + place
    key = tf.random.experimental.stateless_fold_in(_seed(seed, stream), epoch, alg="philox")
    return tf.random.experimental.stateless_shuffle(tf.range(size, dtype=tf.int64), key, alg="philox")


def clip_draws(seed: int, position: tf.Tensor, count: int) -> tf.Tensor:
    """The random choices of the clip at `position`: float64 [count], uniform in [0, 1)."""
    key = tf.random.experimental.stateless_fold_in(_seed(seed, _CLIP), position)
    return tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox")


def _seed(seed: int, stream: int) -> tf.Tensor:
    return tf.constant([seed, stream], tf.int32)
