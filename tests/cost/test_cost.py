"""Costs of models: the published counts, a second way to count, memory, tables, the command."""

import dataclasses
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend import core

from benchmarks import cost_figures
from tests.conftest import REPOSITORY
from tests.helpers.small_models import MODELS, small_config
from vivit_jax import train_step
from vivit_jax.config.experiment import Experiment, default_config
from vivit_jax.config.flags import load_config
from vivit_jax.cost import forward_count, matrix_products, paper, report, train_count
from vivit_jax.cost.counts import parameters_by_part
from vivit_jax.models import ViViT, ViViTConfig, abstract_params, count_parameters
from vivit_jax.train_step import build_train_program
from vivit_jax.utils.tables import Table

SGD = optax.sgd(0.1, momentum=0.9)


def products_of(program):
    """Returns the multiply-adds of every dot_general of a jaxpr: result size x contracted size x trip count."""
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
def test_closed_formula_equals_the_traced_program(name, fields):
    check_products(small_config(**MODELS[name], **fields))


def check_products(config):
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    program = jax.make_jaxpr(ViViT(config).apply)({"params": abstract_params(config)}, video)
    assert sum(matrix_products(config).values()) == products_of(program.jaxpr)


def test_table2_is_as_published_with_known_exceptions():
    rows = list(paper.table2_rows())
    assert [row.agrees for row in rows if row.quantity == "GFLOPs"] == [True] * 5
    model1, model2, model4 = (row for row in rows if not row.agrees)
    assert [round(row.ours, 6) for row in (model1, model4)] == [88.954, 88.952464]
    assert model1.remark == model4.remark == paper.REMARKS["truncated"]
    assert (model1.published, model4.published) == (88.9, 88.9)
    params = abstract_params(ViViTConfig.from_name("ViViT-B/16x2"))
    norms = sum(n for part, n in parameters_by_part(params).items() if "norm" in part)
    assert round(norms / 1e6, 3) == 0.038
    assert [round(row.ours - norms / 1e6, 1) for row in (model1, model4)] == [88.9, 88.9]
    assert (model2.model, model2.published, round(model2.ours, 6)) == ("Model 2, factorised encoder", 100.7, 115.062928)
    assert "+14.263" in model2.cells()
    assert model2.remark == paper.REMARKS["depths"]
    released, nearest, less = (
        ViViTConfig.from_name("ViViT-B/16x2", attention="factorised_encoder", temporal_layers=layers)
        for layers in (4, 2, 3)
    )
    each = count_parameters(released) - count_parameters(less)
    assert (round(each / 1e6, 2), round(count_parameters(nearest) / 1e6, 1)) == (7.09, 100.9)
    assert [round(forward_count(config) / 1e9, 1) for config in (nearest, released)] == [284.1, 284.4]


def test_table5_is_published_with_and_without_class_token():
    rows = list(paper.table5_rows())
    assert [row.agrees for row in rows] == [True, False, False]
    assert [row.ours for row in rows] == pytest.approx([1445.776, 2919.750, 3993.056], rel=2e-5)
    d, layers = 1024, 24
    for row, crop in zip(rows, (224, 288, 320), strict=True):
        tokens = 16 * (crop // 16) ** 2
        layer = 12 * d * d * (tokens + 1) + 2 * d * (tokens + 1) ** 2
        assert row.products == pytest.approx((layers * layer + tokens * 2 * 16 * 16 * 3 * d + 400 * d) / 1e9)
    pooled = [float(re.search(r"([\d.]+) G: the published number", row.remark)[1]) for row in rows[1:]]
    assert pooled == pytest.approx([2918.93, 3992.12], abs=0.08)
    # The note: no single program rounds to all three.
    without = ViViTConfig.from_name("ViViT-L/16x2", classifier="gap")
    assert round(forward_count(without) / 1e9) == 1445 != rows[0].published


def test_figure9_adds_tokeniser_cost_only():
    rows = list(paper.figure9_rows())
    counts = [row for row in rows if row.quantity == "GFLOPs"]
    tokens = [row.ours for row in rows if row.quantity == "tokens"]
    assert tokens == [3136] * 3
    one = 3136 * 2 * 16 * 16 * 3 * 768 / 1e9
    assert [row.ours - counts[0].ours for row in counts] == pytest.approx([0, one, 3 * one], abs=0.01)


def test_count_ignores_scan_dtype_remat_and_backend():
    fields = {"num_layers": 3, "num_classes": 6}
    plain = forward_count(small_config(**fields))
    assert plain > sum(matrix_products(small_config(**fields)).values())
    for other in ({"scan_layers": True}, {"dtype": "bfloat16"}, {"remat": "full"}, {"attention_backend": "tiled"}):
        assert forward_count(small_config(**fields, **other)) == plain


def run_of(config, **sections):
    """The experiment of a model."""
    model = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    return Experiment.from_config({"model": model, **sections})


def test_training_step_costs_three_forward_passes_plus_remat(monkeypatch):
    config = small_config(hidden_size=64, mlp_dim=256, num_heads=4, num_layers=3)
    forward = forward_count(config)
    # As on GPUs; one that is not at the top cannot be lowered.
    monkeypatch.setattr(train_step.step, "compiler_options", lambda *_: {"xla_gpu_dot_merger_threshold_mb": 0})
    clip, step = train_count(run_of(config), config)
    with_remat, same = train_count(run_of(config), dataclasses.replace(config, remat="full", scan_layers=True))
    assert clip == pytest.approx(3 * forward, rel=0.12)
    # remat recomputes all products of a layer but the MLP's second, whose result the backward pass does not need.
    parts = matrix_products(config)
    recomputed = parts["projections"] + parts["attention"] + parts["mlp"] / 2
    assert with_remat - clip == pytest.approx(recomputed, rel=0.15)
    assert step == pytest.approx(same, rel=1e-3)
    # Momentum, learning rate, update and three norms: about a dozen operations for each parameter.
    assert 4 < 2 * step / count_parameters(config) < 20
    # SAM: both passes, and of each parameter the norm and the step to the neighbour.
    twice, more = train_count(run_of(config, optimizer={"sam_rho": 0.1, "accumulate_steps": 4}), config)
    assert twice == pytest.approx(2 * clip, rel=0.02)
    assert 2 * (more - step) / count_parameters(config) == pytest.approx(4, abs=1)


def test_masked_pretraining_costs_the_visible_tokens_and_the_decoder():
    config = small_config(hidden_size=64, mlp_dim=256, num_heads=4, num_layers=6, num_classes=None)
    run = run_of(config, pretrain={"mask_ratio": 0.75, "decoder_layers": 1, "decoder_size": 8})
    whole, visible = forward_count(config), forward_count(config, run.pretrain)
    assert 0.2 * whole < visible < 0.4 * whole
    assert train_count(run, config)[0] == pytest.approx(3 * visible, rel=0.12)


def test_temporaries_are_reported_by_the_compiler():
    def temporaries(**fields):
        model = ViViT(small_config(num_layers=4, scan_layers=True, **fields))
        return report.compiled_temporaries(model, build_train_program(model, SGD, optax.constant_schedule(0.1)))

    inference, training = temporaries()
    assert 0 < inference < training
    assert temporaries(remat="full")[1] < training


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("adamw", 2)])
def test_state_memory_is_copies_of_the_parameters(optimizer, copies):
    config = default_config()
    config.data.name, config.model.name, config.optimizer.name = "kinetics400", "ViViT-H/16x2", optimizer
    config.optimizer.update(schedule="step", schedule_steps=(100,), warmup_epochs=1.0)  # of a run of any length
    memory = report.tables_of(Experiment.from_config(config), compiled=False)[-1]
    sizes = {quantity: float(value.replace(",", "")) for quantity, value, *_ in memory.rows}
    assert sizes["parameters"] == sizes["gradients"] == pytest.approx(636_176_784 * 4 / 2**20, abs=0.1)
    assert sizes["optimizer state"] == pytest.approx(copies * sizes["parameters"], abs=0.2)
    assert sizes["pixels, one clip"] == pytest.approx(32 * 224 * 224 * 3 / 2**20, abs=0.1)


def test_masked_pretraining_has_a_decoder():
    config = load_config(str(REPOSITORY / "configs" / "pretrain_mae.py"))
    tables = report.tables_of(Experiment.from_config(config))
    parts, operations, memory = ({name: float(n.replace(",", "")) for name, n, *_ in table.rows} for table in tables)
    assert parts["decoder/spatial_encoder/layers"] > 0
    assert memory["parameters"] == pytest.approx(4 * parts["all"] / 2**20, abs=0.1)
    assert 2 < operations["training, one clip"] / operations["forward, one clip"] < 4
    assert memory["temporaries of a training step, one clip"] > memory["temporaries of inference, one clip"] > 0


def test_figures_show_the_counts(tmp_path, monkeypatch):
    count = lambda config: float(sum(matrix_products(config).values()))  # noqa: E731
    monkeypatch.setattr(paper, "forward_count", count)
    written = cost_figures.save_figures(tmp_path / "new")
    assert [path.name for path in written] == ["figure7b.png", "figure8b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    figure = cost_figures.figure8b()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    expected = [
        count(ViViTConfig.from_name(f"ViViT-B/16x{t}", **fields)) / 1e9
        for fields in paper.MODELS.values()
        for t in (2, 4, 8, 16)
    ]
    assert heights == pytest.approx(expected)


def test_render_numbers_the_remarks():
    rows = (("x, y", "1,000", "long"), ("z", "2", ""))
    text = str(Table("Title", ("a", "b", "remark"), rows, ("below",)))
    assert text.splitlines()[2:6] == [
        "| a    |     b | remark |",
        "| ---- | ----: | ------ |",
        "| x, y | 1,000 | (1)    |",
        "| z    |     2 |        |",
    ]
    assert text.endswith("(1) long\n\nbelow")


def rows_of(text):
    """Yields the cells of each line of the tables in Markdown."""
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vivit_jax.cost", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_command_prints_a_table_of_the_paper():
    done = command("--only=table5")
    assert done.returncode == 0, done.stderr
    rows = list(rows_of(done.stdout))
    assert [(row[2], row[5]) for row in rows[2:]] == [("1446", "same"), ("2919", "differs"), ("3992", "differs")]
    assert "counting Table 5" in done.stderr
    with pytest.raises(ValueError, match="only=table3 is unknown; choose among table2, table5"):
        list(paper.tables(["table2", "table3"]))


def test_command_prints_the_cost_of_a_config():
    done = command("--config=configs/moving_digits.py", "--config.model.remat=full")
    assert done.returncode == 0, done.stderr
    values = {quantity: value.replace(",", "") for quantity, value, *_ in rows_of(done.stdout)}
    config = ViViTConfig(
        **{"attention": "factorised_encoder", "hidden_size": 96, "num_heads": 3, "mlp_dim": 384, "num_layers": 3},
        **{"temporal_layers": 2, "num_frames": 16, "image_size": 56, "tubelet_size": (8, 14, 14), "classifier": "gap"},
        num_classes={"verb": 8, "noun": 10},
    )
    assert int(values["all"]) == count_parameters(config)
    assert float(values["forward, one clip"]) == pytest.approx(forward_count(config) / 1e9, abs=5e-4)
    assert float(values["optimizer state"]) == pytest.approx(2 * float(values["parameters"]), abs=0.11)
    assert float(values["temporaries of a training step, one clip"]) > float(values["gradients"])
