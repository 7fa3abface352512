"""A tiny moving_digits for the tests of the data pipeline."""

from pathlib import Path

import pytest

from tests.helpers.digits import build_digits
from vivit_jax.data import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of data sets with moving_digits in it: 48 training and 16 validation videos, generated and built."""
    folder = tmp_path_factory.mktemp("data")
    build_digits(folder, 48, 16, num_workers=0)
    return folder


@pytest.fixture(scope="session")
def tiny_records(tiny) -> Path:
    return build.records_folder("moving_digits", tiny)
