"""Features of a chunk record, and their deterministic serialisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vivit_jax.data import host_tf
from vivit_jax.data.host_tf import tf

import tensorflow_datasets as tfds  # isort: skip

host_tf.load()  # before tfds uses TensorFlow


def features(class_names: Mapping[str, Sequence[str]], multi_label: Collection[str] = ()) -> tfds.features.FeaturesDict:
    """Returns the features of a record: a chunk of consecutive frames and the facts of its video.

    The feature of a multi-label head has another name, so that the records show which heads are.
    """
    labels = {head: tfds.features.ClassLabel(names=_unique(names)) for head, names in class_names.items()}
    single = {head: label for head, label in labels.items() if head not in multi_label}
    multiple = {head: tfds.features.Sequence(label) for head, label in labels.items() if head in multi_label}
    return tfds.features.FeaturesDict(
        {
            "video_id": tfds.features.Text(),
            "row": tf.int64,
            "chunk": tf.int64,
            "num_frames": tf.int64,
            "fps": tf.float32,
            "height": tf.int64,
            "width": tf.int64,
            **({"label": single} if single else {}),
            **({"labels": multiple} if multiple else {}),
            "frames": tfds.features.Sequence(tfds.features.Image(encoding_format="jpeg")),
        }
    )


def serialiser(
    class_names: Mapping[str, Sequence[str]], multi_label: Collection[str] = ()
) -> Callable[[Mapping[str, Any]], bytes]:
    """Returns the function that serialises an example of `features(...)`, to the same bytes in every process."""
    form = features(class_names, multi_label)
    serializer = tfds.core.example_serializer.ExampleSerializer(form.get_serialized_info())

    def serialise(example: Mapping[str, Any]) -> bytes:
        data = serializer.serialize_example(form.encode_example(example))
        # TFDS leaves the order of the features to protobuf, which hashes them with a seed of the process.
        return tf.train.Example.FromString(data).SerializeToString(deterministic=True)

    return serialise


def _unique(names: Sequence[str]) -> list[str]:
    """Makes class names unique, as TFDS requires; in some data sets two classes have the same name."""
    seen: Counter = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
