"""What models cost: published counts to their last digit, a second way to count, hand-counted memory, the command."""

import csv
import dataclasses
import functools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend import core

from tests.conftest import REPOSITORY
from tests.helpers.small_models import MODELS, small_config
from vivit_jax.cost import (
    figures,
    forward_count,
    matrix_products,
    memory_of,
    paper,
    render,
    residual_bytes,
    train_count,
)
from vivit_jax.cost.memory import compiled_bytes, peak_bytes, peak_of_program
from vivit_jax.models import ViViT, ViViTConfig, abstract_params, count_parameters

SGD = optax.sgd(0.1, momentum=0.9)


def products_of(program):
    """Multiply-adds of every dot_general of a jaxpr, loops as often as they run: each result's size times its sum."""
    total = 0
    for eqn in program.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        for inner in eqn.params.values():
            inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            if isinstance(inner, core.Jaxpr):
                total += products_of(inner) * eqn.params.get("length", 1)
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"classifier": "gap", "num_classes": {"verb": 3, "noun": 4}, "num_layers": 3},
        {"tokenizer": "uniform_frames", "representation_size": 7, "num_heads": 4},
        {"num_classes": None, "in_channels": 2},
    ],
)
def test_the_closed_formula_is_the_traced_program_s(name, fields):
    check_products(small_config(**MODELS[name], **fields))


def test_the_closed_formula_counts_all_tokens_that_reach_the_temporal_encoder():
    check_products(small_config(**MODELS["model2"], frame_pooling=False))


def check_products(config):
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    program = jax.make_jaxpr(ViViT(config).apply)({"params": abstract_params(config)}, video)
    assert sum(matrix_products(config).values()) == products_of(program.jaxpr)


def test_table2_agrees_but_for_what_is_explained():
    rows = paper.table2_rows()
    assert [row.agrees for row in rows if row.quantity == "GFLOPs"] == [True] * 5
    apart = {row.model: row for row in rows if not row.agrees}
    cut_off = {name: apart.pop(name) for name in list(apart) if name[:7] in ("Model 1", "Model 4")}
    assert [round(row.ours, 6) for row in cut_off.values()] == [88.954, 88.952464]
    assert all("equals ours cut off after 1 decimal" in row.remark for row in cut_off.values())
    (row,) = apart.values()
    assert (row.model, row.published, round(row.ours, 6)) == ("Model 2, factorised encoder", 100.7, 115.062928)
    assert row.difference == pytest.approx(0.14263, abs=1e-5)
    for fact in ("4 whole layers of 7.09 M", "2 layers, 100.9 M and 284.1 GFLOPs", "are those of 4 (284.38 G)"):
        assert fact in row.remark


def test_table5_agrees_with_one_class_token_or_none():
    rows = paper.table5_rows()
    assert [row.agrees for row in rows] == [True, False, False]
    assert [row.ours for row in rows] == pytest.approx([1445.776, 2919.750, 3993.056], rel=2e-5)
    d, layers = 1024, 24
    for row, crop in zip(rows, (224, 288, 320), strict=True):
        tokens = 16 * (crop // 16) ** 2
        layer = 12 * d * d * (tokens + 1) + 2 * d * (tokens + 1) ** 2
        assert row.products == pytest.approx((layers * layer + tokens * 2 * 16 * 16 * 3 * d + 400 * d) / 1e9)
    pooled = [float(re.search(r"counts ([\d.]+) G", row.remark)[1]) for row in rows[1:]]
    assert pooled == pytest.approx([2918.93, 3992.12], abs=0.08)
    assert all("published number to its last digit" in row.remark for row in rows[1:])
    note = paper.explain_table5(rows)
    assert "no class token, rounded: 1445, 2919, 3992" in note
    assert note.endswith("No one of these is all three of the published row.")


def test_figure9_only_the_tokeniser_grows():
    counts = [row for row in paper.figure9_rows() if row.quantity == "GFLOPs"]
    tokens = [row.ours for row in paper.figure9_rows() if row.quantity == "tokens"]
    assert tokens == [3136] * 3
    one = 3136 * 2 * 16 * 16 * 3 * 768 / 1e9
    assert [row.ours - counts[0].ours for row in counts] == pytest.approx([0, one, 3 * one], abs=0.01)


def test_the_count_does_not_depend_on_how_it_is_computed():
    fields = {"num_layers": 3, "num_classes": 6}
    plain = forward_count(small_config(**fields))
    assert plain > sum(matrix_products(small_config(**fields)).values())
    for other in ({"scan_layers": True}, {"dtype": "bfloat16"}, {"remat": "full"}, {"attention_backend": "tiled"}):
        assert forward_count(small_config(**fields, **other)) == plain


def test_a_training_step_is_three_forward_passes_and_remat_adds_most_of_one():
    config = small_config(hidden_size=64, mlp_dim=256, num_heads=4, num_layers=3)
    forward = forward_count(config)
    clip, step = train_count(config, SGD)
    again, same = train_count(dataclasses.replace(config, remat="full", scan_layers=True), SGD)
    assert clip == pytest.approx(3 * forward, rel=0.12)
    # Of a layer's products only the MLP's second need not be done again: nothing looks at its result.
    parts = matrix_products(config)
    repeated = parts["projections"] + parts["attention"] + parts["mlp"] / 2
    assert again - clip == pytest.approx(repeated, rel=0.15)
    assert step == pytest.approx(same, rel=1e-3)
    # Momentum, learning rate, update and three norms: about a dozen operations for each parameter.
    assert 4 < 2 * step / count_parameters(config) < 20
    with pytest.raises(ValueError, match="num_classes=None leaves no head to train"):
        train_count(small_config(num_classes=None), SGD)


@pytest.mark.parametrize(("optimizer", "copies"), [(optax.sgd(0.1), 0), (SGD, 1), (optax.adamw(1e-3), 2)])
def test_state_is_so_many_copies_of_the_parameters(optimizer, copies):
    config = small_config()
    memory = memory_of(config, optimizer)
    assert memory.parameters == memory.gradients == 4 * count_parameters(config)
    assert 0 <= memory.optimizer - copies * memory.parameters <= 8  # counters
    state = memory.parameters + memory.gradients + memory.optimizer + memory.kept_once
    assert memory.training(3) - state == 3 * (memory.training(1) - state)
    assert memory.clip == 4 * 8 * 12 * 3


def test_what_is_kept_for_the_backward_pass():
    """Under full remat a layer keeps its input; under dots also the results of its six dense layers."""
    config = small_config()
    tokens, d = 2 * 2 * 3 + 1, config.hidden_size

    @functools.cache
    def layer(clips, **fields):
        deep, shallow = (small_config(num_layers=n, **fields) for n in (3, 2))
        return residual_bytes(deep, clips) - residual_bytes(shallow, clips)

    assert layer(2, remat="full") == 2 * tokens * d * 4
    assert layer(2, remat="full", scan_layers=True) == 2 * tokens * d * 4
    dense = 4 * d + config.mlp_dim + d
    assert layer(2, remat="full") < layer(2, remat="dots") <= 2 * tokens * (d + dense) * 4
    assert layer(2, remat="dots") < layer(2)
    weights = config.num_heads * tokens * tokens * 4
    assert layer(1) > weights
    full = memory_of(small_config(remat="full", dtype="bfloat16"), SGD)
    assert full.recomputed_per_clip == layer(1, dtype="bfloat16") - layer(1, dtype="bfloat16", remat="full") > 0


def test_bfloat16_keeps_narrow_copies_of_the_kernels():
    narrow, wide = (memory_of(small_config(dtype=dtype), SGD) for dtype in ("bfloat16", "float32"))
    assert narrow.kept_per_clip < wide.kept_per_clip
    assert narrow.kept_once - wide.kept_once == 2 * 2 * (4 * 8 * 8 + 2 * 8 * 12)  # 2 bytes, 2 layers


def test_peak_of_a_program_counted_by_hand():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)  # 256 bytes

    def peak(function):
        return peak_of_program(jax.make_jaxpr(function)(x).jaxpr)

    assert peak(lambda x: jnp.exp(x)) == 256
    assert peak(lambda x: jnp.tanh(jnp.exp(x))) == 256  # in place
    assert peak(lambda x: jnp.exp(x) @ x) == 512
    assert peak(lambda x: jax.jit(lambda y: y @ y)(jnp.exp(x))) == 512
    assert peak(lambda x: jax.jit(jnp.tanh)(jnp.exp(x))) == 256  # the argument of a call dies in it
    assert peak(lambda x: jnp.exp(x).sum() + (jnp.exp(x) @ x).sum()) == 512 + 4
    ten = lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c), c), jnp.exp(x), length=10)  # noqa: E731
    assert peak(ten) >= 11 * 256


def test_inference_holds_the_weights_of_one_layer():
    fields = {"image_size": (64, 64), "tubelet_size": (1, 4, 4)}
    config = small_config(**fields)
    tokens = 4 * 16 * 16 + 1
    weights = config.num_heads * tokens * tokens * 4
    assert weights < peak_bytes(config, 1) < 1.2 * weights
    assert peak_bytes(config, 3) == pytest.approx(3 * peak_bytes(config, 1), rel=1e-3)
    assert peak_bytes(small_config(**fields, num_layers=6), 1) == peak_bytes(config, 1)
    assert peak_bytes(small_config(**fields, attention_backend="tiled"), 1) < 0.4 * weights


def test_the_compiler_is_asked_for_its_own():
    config = small_config(num_layers=1)
    inference, training = compiled_bytes(config, SGD)
    assert 0 < inference < training


def test_the_largest_model_is_counted_without_its_memory():
    memory = memory_of(ViViTConfig.from_name("ViViT-H/16x2", image_size=448), SGD)
    assert memory.training(1) > 2**37


def test_pictures_show_the_counts(tmp_path, monkeypatch):
    count = lambda config: float(sum(matrix_products(config).values()))  # noqa: E731
    monkeypatch.setattr(figures, "forward_count", count)
    written = figures.save(tmp_path / "new")
    assert [path.name for path in written] == ["figure7b.png", "figure8b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    figure = figures.figure8b()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    expected = [
        count(ViViTConfig.from_name(f"ViViT-B/16x{t}", **fields)) / 1e9
        for fields in paper.MODELS.values()
        for t in (2, 4, 8, 16)
    ]
    assert heights == pytest.approx(expected)
    figures.plt.close(figure)


def test_tables_as_text_markdown_and_csv():
    table = render.Table("t", "Title", ("a", "b", "remark"), (("x, y", "1,000", "long"), ("z", "2", "")), ("below",))
    text, markdown = (render.render([table], form) for form in ("text", "markdown"))
    assert text.splitlines()[2:6] == ["a         b  remark", "----  -----  ------", "x, y  1,000  (1)", "z         2"]
    assert text.endswith("(1) long\nbelow")
    assert "| x, y | 1,000 | (1)    |" in markdown
    assert render.render([table, table], "csv").splitlines()[:2] == ["table,a,b,remark", 't,"x, y",1000,long']
    with pytest.raises(ValueError, match="choose one of text, markdown, csv"):
        render.render([table], "html")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vivit_jax.cost", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_the_command():
    done = command("--only=table5", "--format=csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["published"], row["last digit"]) for row in rows] == [
        ("1446", "same"),
        ("2919", "differs"),
        ("3992", "differs"),
    ]
    assert "counting Table 5" in done.stderr
    with pytest.raises(ValueError, match="only=table3 is not known; choose among table2, table5"):
        list(paper.tables(["table2", "table3"]))


def test_the_command_on_a_config():
    done = command("--config=configs/moving_digits.py", "--config.model.remat=full", "--format=csv")
    assert done.returncode == 0, done.stderr
    values = {row["quantity"]: row["value"] for row in csv.DictReader(done.stdout.splitlines())}
    config = ViViTConfig(
        **{"attention": "factorised_encoder", "hidden_size": 96, "num_heads": 3, "mlp_dim": 384, "num_layers": 2},
        **{"temporal_layers": 2, "num_frames": 16, "image_size": 56, "tubelet_size": (4, 14, 14)},
        num_classes={"verb": 8, "noun": 10},
    )
    assert int(values["all"]) == count_parameters(config)
    assert float(values["forward, one clip"]) == pytest.approx(forward_count(config) / 1e9, abs=5e-4)
    assert float(values["optimizer state"]) == pytest.approx(2 * float(values["parameters"]), abs=0.11)
