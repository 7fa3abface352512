"""Builds the records of a data set from its annotation files and videos."""

from vivit_jax.data.build.dataset import build, prepare
from vivit_jax.data.build.paths import SUMMARY_FILE, VERSION, records_folder

__all__ = ["SUMMARY_FILE", "VERSION", "build", "prepare", "records_folder"]
