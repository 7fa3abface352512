"""TensorFlow as this package uses it: on the host's CPU, feeding frames. `tf` is imported from here.

The accelerators belong to JAX: without the line below TensorFlow would reserve all memory of every GPU it sees.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Announces itself on stderr at every start, and speeds up nothing that is done here.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
