"""JSON-safe values of trees."""

import json

import numpy as np

from vivit_jax.utils.trees import finite_or_none


def test_non_finite_numbers_become_null():
    value = {"b": [1.5, float("nan"), (float("-inf"), 2)], "a": {"c": np.float64("inf"), "d": "text"}}
    assert json.dumps(finite_or_none(value)) == '{"b": [1.5, null, [null, 2]], "a": {"c": null, "d": "text"}}'
