"""Fixtures and environment shared by all tests."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before jax is imported anywhere: eight virtual CPU devices, so that meshes can be tested on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flag = "--xla_force_host_platform_device_count=8"
if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
# Eight virtual devices that wait for one another need a thread each; the CPU client has as many as there are cores.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch for CUDA loads Triton where it finds it, and after TensorFlow that ends the process (seen with torch 2.13,
# Python 3.13). It does without.
sys.modules.setdefault("triton", None)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The same small programs are compiled in many tests, and again in their subprocesses: once is enough.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vivit_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _absl_verbosity():
    """Restores the level of absl's logger: a test that sets it would hide the log from those that read it after."""
    logger = logging.getLogger("absl")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with the records of a small `moving_digits`: 20 training videos, 13 of validation."""
    from tests.helpers.digits import build_digits

    folder = tmp_path_factory.mktemp("data")
    build_digits(folder, 20, 13)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of fixtures and clips beside the repository; tests that read it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"no numeric fixtures or clips at ../shared (looked in {folder.name}/ beside the repository)")
    return folder
