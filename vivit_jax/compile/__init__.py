"""Ahead-of-time compilation of a config for a TPU slice, on a machine without a TPU."""
