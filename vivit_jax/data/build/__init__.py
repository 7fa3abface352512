"""Builds the records of a data set from its annotation files and videos."""

from vivit_jax.data.build.dataset import BuildOptions, build, prepare
from vivit_jax.data.paths import records_folder
