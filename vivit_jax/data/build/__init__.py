"""Builds the records of a data set from its annotation files and videos."""

from vivit_jax.data.build.dataset import build, prepare
from vivit_jax.data.build.options import BuildOptions
from vivit_jax.data.paths import records_folder
