"""Classes of a model and of data, matched by name."""

import re

import pytest

from vivit_jax.utils.class_names import match

MODEL = ["riding a bike", "abseiling", "push-up"]


@pytest.mark.parametrize(
    ("model", "data", "ids", "how", "warning"),
    [
        (MODEL, MODEL, [0, 1, 2], "the same 3 classes", ""),
        (MODEL, MODEL[::-1], [2, 1, 0], "the same 3 classes in another order", ""),
        (
            MODEL,
            ["Abseiling", "PushUp", "riding_a_bike"],
            [1, 2, 0],
            "another order",
            "'Abseiling' is 'abseiling'",
        ),
        (MODEL, ["push-up", "abseiling"], [2, 1], "2 of the 3 classes of the model in another order", ""),
        (MODEL, ["push-up", "archery"], [2, -1], r"1 \('archery'\) only in the data, 2 \('riding a bike', ", ""),
        # Two spellings of one class are distinct where both sides have both, else they are not one class.
        (["a b", "a_b"], ["a_b", "a b"], [1, 0], "another order", ""),
        (["a b", "c"], ["a_b", "a b"], [-1, -1], r"2 \('a_b', 'a b'\) only in the data", ""),
        (["a b", "a_b"], ["A-B", "c"], [-1, -1], "other classes", ""),
        # No names.
        (
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            MODEL,
            [0, 1, 2],
            "no names",
            "order is the same was not checked",
        ),
        (MODEL, ["0", "1", "2"], [0, 1, 2], "no names", "the classes of the data have no names"),
        (["LABEL_0", "LABEL_1"], MODEL, [-1, -1, -1], "2 classes in the model, 3 in the data", ""),
        (["0", "1", "2"], ["2", "1", "0"], [2, 1, 0], "the same 3 classes in another order", ""),
    ],
)
def test_classes_are_matched_by_name(model, data, ids, how, warning):
    found = match(model, data)
    assert found.ids.tolist() == ids
    assert re.search(how, found.how), found.how
    assert warning in found.warning
    assert bool(found.warning) == bool(warning)


def test_spelling_ignores_the_form_of_unicode():
    composed, decomposed = "caf\u00e9 latte", "cafe\u0301-Latte"  # as macOS stores names of folders
    assert match([composed, "x"], ["x", decomposed]).ids.tolist() == [1, 0]
