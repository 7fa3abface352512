"""TensorFlow as this package uses it, on the host's CPU to feed frames. Import `tf` from here.

It is imported when a function of it is first used: this takes seconds, for which `--help` and errors should not wait.
"""

import functools
import gc
import importlib.util
import os
import threading
import types

_LOADING = threading.Lock()


def load() -> types.ModuleType:
    """Imports and configures TensorFlow, and returns it. Call it before a library that imports TensorFlow itself."""
    with _LOADING:
        return _load()


@functools.cache
def _load() -> types.ModuleType:
    # jax sets 1: a warning with a traceback for each broken record.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    # oneDNN prints a message on stderr at every start, and does not speed up this pipeline.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # TensorFlow's own allocator keeps the memory of freed frames and batches for the next ones. The C library returns
    # large blocks to the kernel, so that each begins with thousands of page faults (docs/performance.md). The limit, in
    # MiB, is by default 64 GiB, which evaluation batches of many views can reach.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(1 << 24))
    # TensorFlow imports Keras 3, and with it scikit-learn, for a third of its time, unless told to use Keras 2, which
    # is rarely installed. `tensorflow.keras` still works: it is imported when used.
    skip_keras = "TF_USE_LEGACY_KERAS" not in os.environ and not importlib.util.find_spec("tf_keras")
    if skip_keras:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow

    if skip_keras:
        del os.environ["TF_USE_LEGACY_KERAS"]
    # Its objects live until the end of the process, where the garbage collector would take most of a second for them.
    gc.freeze()
    # The accelerators belong to JAX: TensorFlow would reserve all memory of every GPU it sees.
    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


class _TensorFlow(types.ModuleType):
    """The module `tensorflow`, loaded when an attribute is read."""

    def __getattr__(self, name: str):
        return getattr(load(), name)


tf = _TensorFlow("tensorflow")
