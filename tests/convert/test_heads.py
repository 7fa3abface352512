"""Which classifiers of the weights a model takes over, by the names of their classes."""

import numpy as np
import pytest

from tests.helpers.small_models import random_params
from vivit_jax.convert import ConversionError, InitFrom
from vivit_jax.convert.image_to_video import adapt
from vivit_jax.models import ViViTConfig

FIELDS = {"hidden_size": 24, "num_layers": 1, "mlp_dim": 32, "num_heads": 3, "num_frames": 2, "image_size": 28}
CLASSES = {"verb": ("push", "pull", "lift"), "noun": ("cup", "door")}


def model(classes):
    heads = tuple((head, len(names)) for head, names in classes.items())
    return ViViTConfig(**FIELDS, tubelet_size=(2, 14, 14), num_classes=heads)


def report_of(target_classes, head="match", source_classes=CLASSES):
    """Returns (the weights, the model's parameters, the report)."""
    source = model(CLASSES)
    weights = random_params(source, dtype=np.float32)
    class_names = (source_classes, target_classes)
    options = InitFrom(head=head)
    return weights, *adapt(weights, source, model(target_classes), options, class_names=class_names)


def adapt_heads(*args, **kwargs):
    """Returns (the weights, the model's parameters, {leaf: outcome of each head})."""
    weights, params, report = report_of(*args, **kwargs)
    return weights, params, {entry.name: f"{entry.outcome}: {entry.how}" for entry in report.head_entries()}


def test_same_classes_in_any_order_keep_the_head():
    weights, params, outcomes = adapt_heads({"verb": ("lift", "push", "pull"), "noun": ("cup", "door")})
    np.testing.assert_array_equal(params["head_noun"]["kernel"], weights["head_noun"]["kernel"])
    assert "the same 2 classes" in outcomes["head_noun/kernel"]
    # Class 0 of the model, "lift", is class 2 of the weights.
    np.testing.assert_array_equal(params["head_verb"]["kernel"], weights["head_verb"]["kernel"][:, [2, 0, 1]])
    np.testing.assert_array_equal(params["head_verb"]["bias"], weights["head_verb"]["bias"][[2, 0, 1]])
    assert "the same 3 classes in another order" in outcomes["head_verb/kernel"]


def test_other_classes_reinitialise_the_head():
    weights, params, outcomes = adapt_heads({"verb": ("push", "pull", "turn"), "scene": ("kitchen",)})
    assert weights["head_verb"]["kernel"].any()
    assert not params["head_verb"]["kernel"].any()
    assert not params["head_scene"]["kernel"].any()
    assert "1 ('turn') only in the data, 1 ('lift') only in the weights" in outcomes["head_verb/kernel"]
    assert "the weights have no such head" in outcomes["head_scene/kernel"]
    assert outcomes["head_noun/kernel"] == "dropped: the model has no such head"


def test_heads_without_class_names_are_kept_on_request():
    _, params, outcomes = adapt_heads(CLASSES, source_classes={})
    assert not params["head_verb"]["kernel"].any()
    assert "the classes of the weights have no names" in outcomes["head_verb/kernel"]
    weights, params, _ = adapt_heads(CLASSES, "keep", source_classes={})
    np.testing.assert_array_equal(params["head_verb"]["kernel"], weights["head_verb"]["kernel"])
    assert not adapt_heads(CLASSES, "reinit")[1]["head_verb"]["kernel"].any()
    with pytest.raises(ConversionError, match="head='keep', but head_verb has other classes: 3 in the weights"):
        adapt_heads({"verb": ("a", "b", "c"), "noun": ("cup", "door")}, "keep")


def test_lost_classifiers_are_warned_of():
    """Lost or assumed weights cause a warning; a head that `reinit` initialises does not."""
    other = {"verb": ("push", "pull", "turn"), "scene": ("kitchen",)}
    lost = "\n".join(report_of(other)[2].warnings)
    assert "classifier head_verb of 3 classes ('push', 'pull', 'lift') is not used: head = match: other classes" in lost
    assert "classifier head_noun of 2 classes ('cup', 'door') is not used: the model has no such head" in lost
    assert report_of(other, "reinit")[2].warnings == ()
    assert report_of(CLASSES)[2].warnings == ()
    (verb, noun) = report_of(CLASSES, source_classes={})[2].warnings
    assert "3 classes ('LABEL_0', 'LABEL_1', 'LABEL_2') is not used" in verb
    assert "init_from.head=keep takes it as it is" in noun
    assert "was not checked" in report_of(CLASSES, "keep", source_classes={})[2].warnings[0]
    assert "was not checked" in report_of(CLASSES, "keep", {"verb": ["LABEL_0", "LABEL_1", "LABEL_2"]})[2].warnings[0]


def test_classes_in_another_spelling_or_a_part_of_them_keep_the_head():
    weights, params, report = report_of({"verb": ("Pull", "LIFT"), "noun": ("door", "cup")})
    np.testing.assert_array_equal(params["head_verb"]["kernel"], weights["head_verb"]["kernel"][:, [1, 2]])
    np.testing.assert_array_equal(params["head_noun"]["bias"], weights["head_noun"]["bias"][[1, 0]])
    assert report.warnings == (
        "head_verb: 2 of the 3 classes of the weights in the same order; the other 1 are dropped",
    )
