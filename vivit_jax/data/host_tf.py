"""TensorFlow as this package uses it, on the host's CPU to feed frames. Import `tf` from here.

The accelerators belong to JAX: without the line below, TensorFlow would reserve all memory of every GPU it sees.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN prints a message on stderr at every start, and does not speed up this pipeline.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# TensorFlow's own allocator keeps the memory of freed frames and batches for the next ones. The C library returns large
# blocks to the kernel, so that each begins with thousands of page faults (docs/performance.md). The limit, in MiB, is
# by default 64 GiB, which evaluation batches of many views can reach.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(1 << 24))

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
