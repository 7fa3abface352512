"""Runs of these tests draw nothing, except where a test looks at the pictures."""

import pytest

from tests.helpers.experiment import without_pictures


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with without_pictures(but=["with_pictures"]):
        yield
