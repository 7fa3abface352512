"""Ranking, attention maps of every model, and the command line."""

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


def test_actions_are_ranked_by_product_of_softmaxes():
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
def test_attention_map_comes_from_last_layer(attention, fields):
    """Model 1: equal to the weights. All models: a distribution over the grid that moves with the frames."""
    config = ViViTConfig(
        hidden_size=8, num_layers=1, num_heads=2, mlp_dim=8, num_frames=6, image_size=(8, 12), tubelet_size=(2, 4, 4),
        attention=attention, num_classes=3, **{"temporal_layers": 1} | fields,
    )  # fmt: skip
    model = ViViT(config)
    video = np.full((1, *config.video_shape), 128, np.uint8)
    video[:, 2:4, 4:8, 8:12] = 255  # grid index (1, 1, 2)
    params = model.init(jax.random.key(0), jnp.zeros((1, *config.video_shape)))["params"]

    where = attention_map(model.apply, config, params, video)
    assert where.shape == (3, 2, 3)
    assert float(where.sum()) == pytest.approx(1, abs=1e-5)

    # Equal to the attention weights of the class token, or of the average query.
    if attention == "spatiotemporal":
        _, sown = model.apply({"params": params}, normalise(video), sow_attention=True, mutable=["intermediates"])
        weights = np.asarray(sown["intermediates"]["encoder"]["layers"]["attention"]["weights"])[0, 0].mean(0)
        expected = weights[0, 1:] if config.classifier == "token" else weights.mean(0)
        np.testing.assert_allclose(np.ravel(where), expected / expected.sum(), rtol=1e-5)

    # Without position embeddings, the map of a factorised model moves with the frames.
    if attention.startswith("factorised_") and config.temporal_layers:
        still = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if "position_embedding" in str(path) else x, params
        )
        turned = np.concatenate([video[:, 4:], video[:, :4]], axis=1)  # by one tubelet
        before, after = (attention_map(model.apply, config, still, v) for v in (video, turned))
        np.testing.assert_allclose(np.roll(before, 1, axis=0), after, rtol=1e-4, atol=1e-6)


def test_missing_checkpoint_error_names_the_path(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vivit_jax.predict", f"--workdir={tmp_path}", "clip.mp4"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"no checkpoint at {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
