"""Which classifiers of the weights a model takes, by the names of their classes."""

import numpy as np
import pytest

from tests.helpers.small_models import random_params
from vivit_jax.convert import ConversionError, InitFrom
from vivit_jax.convert.image_to_video import adapt
from vivit_jax.models import ViViTConfig

FIELDS = {"hidden_size": 24, "num_layers": 1, "mlp_dim": 32, "num_heads": 3, "num_frames": 2, "image_size": 28}
OLD = {"verb": ("push", "pull", "lift"), "noun": ("cup", "door")}


def made(new, head="match", old=OLD):
    """(the old parameters, the new ones, what became of each head)."""
    source = ViViTConfig(**FIELDS, tubelet_size=(2, 14, 14), num_classes=tuple((h, len(n)) for h, n in OLD.items()))
    config = ViViTConfig(**FIELDS, tubelet_size=(2, 14, 14), num_classes=tuple((h, len(n)) for h, n in new.items()))
    params = random_params(source, dtype=np.float32)
    found, report = adapt(params, source, config, InitFrom(head=head), class_names=(old, new))
    return params, found, {entry.name: f"{entry.outcome}: {entry.how}" for entry in report.head_entries()}


def test_the_same_classes_keep_their_head_and_another_order_is_put_right():
    params, found, told = made({"verb": ("lift", "push", "pull"), "noun": ("cup", "door")})
    np.testing.assert_array_equal(found["head_noun"]["kernel"], params["head_noun"]["kernel"])
    assert "the same 2 classes" in told["head_noun/kernel"]
    # Our class 0, "lift", is their class 2.
    np.testing.assert_array_equal(found["head_verb"]["kernel"], params["head_verb"]["kernel"][:, [2, 0, 1]])
    np.testing.assert_array_equal(found["head_verb"]["bias"], params["head_verb"]["bias"][[2, 0, 1]])
    assert "the same 3 classes in another order" in told["head_verb/kernel"]


def test_as_many_other_classes_get_a_new_head():
    params, found, told = made({"verb": ("push", "pull", "turn"), "scene": ("kitchen",)})
    assert params["head_verb"]["kernel"].any()
    assert not found["head_verb"]["kernel"].any()
    assert not found["head_scene"]["kernel"].any()
    assert "2 in common, 'turn' is only in the model" in told["head_verb/kernel"]
    assert "the weights have no such head" in told["head_scene/kernel"]
    assert told["head_noun/kernel"] == "dropped: the model has no such head"


def test_without_names_no_head_is_kept_but_on_request():
    _, found, told = made(OLD, old={})
    assert not found["head_verb"]["kernel"].any()
    assert "the weights do not name their classes" in told["head_verb/kernel"]
    params, found, _ = made(OLD, "keep", old={})
    np.testing.assert_array_equal(found["head_verb"]["kernel"], params["head_verb"]["kernel"])
    assert not made(OLD, "reinit")[1]["head_verb"]["kernel"].any()
    with pytest.raises(ConversionError, match="head='keep', but head_verb has other classes: 3 in the weights"):
        made({"verb": ("a", "b", "c"), "noun": ("cup", "door")}, "keep")
