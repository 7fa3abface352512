"""Ranking and attention maps of each model; the command line on real files and on files that are none."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from vivit_jax.evaluation.predictions import rank_labels
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.predict import attention_map
from vivit_jax.train_step import normalise


def test_pairs_are_ranked_by_the_product_of_the_softmaxes():
    logits = {"verb": np.array([0.0, 2.0, 1.0]), "noun": np.array([3.0, 0.0])}
    names = {"verb": ["open", "close", "cut"], "noun": ["door", "box"]}
    ranked = rank_labels(logits, names, 2)
    verb = np.exp(logits["verb"]) / np.exp(logits["verb"]).sum()
    noun = np.exp(logits["noun"]) / np.exp(logits["noun"]).sum()
    assert [label for label, _ in ranked["verb"]] == ["close", "cut"]
    assert ranked["action"][0] == ("close door", pytest.approx(verb[1] * noun[0], rel=1e-5))
    assert ranked["action"][1] == ("cut door", pytest.approx(verb[2] * noun[0], rel=1e-5))


@pytest.mark.parametrize(
    ("attention", "fields"),
    [
        ("spatiotemporal", {}),
        ("spatiotemporal", {"classifier": "gap"}),
        ("factorised_encoder", {}),
        ("factorised_encoder", {"temporal_layers": 0}),
        ("factorised_encoder", {"frame_pooling": False}),
        ("factorised_self_attention", {}),
        ("factorised_dot_product", {}),
    ],
)
def test_the_map_of_what_the_model_looks_at_is_made_of_its_last_layer(attention, fields):
    """For Model 1 it is those weights; for every model, a distribution over the grid that moves with the frames."""
    config = ViViTConfig(
        hidden_size=8, num_layers=1, num_heads=2, mlp_dim=8, num_frames=6, image_size=(8, 12), tubelet_size=(2, 4, 4),
        attention=attention, num_classes=3, **{"temporal_layers": 1} | fields,
    )  # fmt: skip
    model = ViViT(config)
    video = np.full((1, *config.video_shape), 128, np.uint8)
    video[:, 2:4, 4:8, 8:12] = 255  # grid place (1, 1, 2)
    params = model.init(jax.random.key(0), jnp.zeros((1, *config.video_shape)))["params"]

    where = attention_map(model.apply, config, params, video)
    assert where.shape == (3, 2, 3)
    assert float(where.sum()) == pytest.approx(1, abs=1e-5)

    # Against the weights themselves: the place that the class token, or the average query, weighs most.
    if attention == "spatiotemporal":
        _, sown = model.apply({"params": params}, normalise(video), sow_attention=True, mutable=["intermediates"])
        weights = np.asarray(sown["intermediates"]["encoder"]["layers"]["attention"]["weights"])[0, 0].mean(0)
        expected = weights[0, 1:] if config.classifier == "token" else weights.mean(0)
        np.testing.assert_allclose(np.ravel(where), expected / expected.sum(), rtol=1e-5)

    # The frames in another order: without positions the map of a factorised model is the same, in that order.
    if attention.startswith("factorised_") and config.temporal_layers:
        still = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if "position_embedding" in str(path) else x, params
        )
        turned = np.concatenate([video[:, 4:], video[:, :4]], axis=1)  # by one tubelet
        before, after = (attention_map(model.apply, config, still, v) for v in (video, turned))
        np.testing.assert_allclose(np.roll(before, 1, axis=0), after, rtol=1e-4, atol=1e-6)


def test_without_a_checkpoint_the_command_says_where_it_looked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vivit_jax.predict", f"--workdir={tmp_path}", "clip.mp4"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"no checkpoint at {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
