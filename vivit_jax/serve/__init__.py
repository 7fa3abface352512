"""A page and a REST interface that predict the labels of uploaded videos.

    python -m vivit_jax.serve --workdir=runs/moving_digits

This module imports nothing: each upload is decoded by a new process, which should start at once (`decode`).
"""
