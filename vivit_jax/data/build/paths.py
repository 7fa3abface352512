"""Where the records of a data set lie."""

from __future__ import annotations

from vivit_jax.utils import storage

VERSION = "1.0.0"


# What was found and made; written last, so that records with it are whole.
SUMMARY_FILE = "summary.json"


def records_folder(name: str, data_dir: storage.Place) -> storage.AnyPath:
    """Where the records of data set `name` lie under `data_dir`: `data_dir/NAME/1.0.0`."""
    return storage.path(data_dir) / name / VERSION
