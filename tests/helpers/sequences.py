"""Records as written by DMVR's generator, of frames that show their number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.helpers.videos import draw_number
from vivit_jax.data.host_tf import tf


def jpeg(image: np.ndarray) -> bytes:
    return tf.io.encode_jpeg(image, quality=90).numpy()


def numbered_frames(numbers: Sequence[int], height: int = 64, width: int = 96) -> list[bytes]:
    """Returns JPEGs that show their numbers in the central square."""
    side, frames = min(height, width), []
    for number in numbers:
        frame = np.full((height, width, 3), 128, np.uint8)
        top, left = (height - side) // 2, (width - side) // 2
        frame[top : top + side, left : left + side] = draw_number(number, side, side)
        frames.append(jpeg(frame))
    return frames


def sequence(frames: Sequence[bytes], times: Sequence[int | float] = (), **context) -> bytes:
    """Returns a serialised SequenceExample; context features by name, "__" for "/"."""
    example = tf.train.SequenceExample()
    for name, value in context.items():
        feature = example.context.feature[name.replace("__", "/")]
        values = value if isinstance(value, list) else [value]
        kinds = {int: feature.int64_list, bytes: feature.bytes_list, float: feature.float_list}
        kinds[type(values[0])].value[:] = values
    for frame in frames:
        example.feature_lists.feature_list["image/encoded"].feature.add().bytes_list.value[:] = [frame]
    for time in times:
        feature = example.feature_lists.feature_list["image/timestamp"].feature.add()
        (feature.float_list if isinstance(time, float) else feature.int64_list).value[:] = [time]
    return example.SerializeToString()


def write_shards(folder: Path, base: str, records: Sequence[bytes], shards: int = 2, pattern="{}-{:05d}-of-{:05d}"):
    """Writes records round robin, as DMVR's generator does; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / pattern.format(base, i, shards) for i in range(shards)]
    for i, path in enumerate(paths):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[i::shards]:
                writer.write(record)
    return paths


def flip_bit(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
