"""Every config and row: builds abstractly, has the published numbers and the golden parameter count."""

import ast
import dataclasses
import functools
import itertools
import json
import re

import numpy as np
import pytest
from absl import flags

from tests.conftest import REPOSITORY
from vivit_jax import optim
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.flags import define_config, load_module
from vivit_jax.config.recipes import RECIPES, published, set_crop
from vivit_jax.data import catalog
from vivit_jax.models import count_parameters

FOLDER = REPOSITORY / "configs"
PAPER = sorted(path.relative_to(REPOSITORY).as_posix() for path in FOLDER.glob("paper/[!_]*.py"))
FILES = sorted(path.relative_to(REPOSITORY).as_posix() for path in FOLDER.glob("[!_]*.py")) + PAPER
GOLDEN_FILE = REPOSITORY / "tests" / "config" / "golden_parameter_counts.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text())
DOCS_FILE = REPOSITORY / "docs" / "configs.md"
WRITE_GOLDEN = 'python -c "from tests.config.test_configs import write_golden; write_golden()"'
WRITE_DOCS = 'python -c "from tests.config.test_configs import write_docs; write_docs()"'


@functools.cache
def load(file):
    return load_module(REPOSITORY / file)


def rows(file):
    return getattr(load(file), "ROWS", {})


NAMES = [name for file in FILES for name in ([f"{file}:{row}" for row in rows(file)] or [file])]


@functools.cache
def experiment(name):
    """(the experiment, its model) of FILE or FILE:ROW."""
    file, _, row = name.partition(":")
    run = Experiment.from_config(load(file).get_config(*([row] if row else [])))
    return run, run.model_config(catalog.get(run.data.name).heads)


@functools.cache
def _count(model):
    return count_parameters(model)


def parameters(name):
    """Returns the parameter count of a config. Fields that do not change it are reset, to count each model once."""
    same = {"dtype": "float32", "remat": "none", "scan_layers": True, "stochastic_depth_rate": 0.0}
    return _count(dataclasses.replace(experiment(name)[1], **same))


def write_golden():
    """Updates the golden list. Review the difference before you commit it."""
    counts = {name: parameters(name) for name in NAMES}
    GOLDEN_FILE.write_text(json.dumps(counts, indent=2) + "\n")


def count_by_formula(c):
    """Returns the parameter count of a model by formulas from section 3 of the paper, without its code."""
    d, t, h, w = c.hidden_size, *c.tubelet_size
    n_t, n_s = c.num_frames // t, (c.image_shape[0] // h) * (c.image_shape[1] // w)
    norm, attention = 2 * d, 4 * (d * d + d)
    mlp = d * c.mlp_dim + c.mlp_dim + c.mlp_dim * d + d
    block = 2 * norm + attention + mlp
    if c.attention == "factorised_self_attention":
        block += norm + attention
    tokenizer = (1 if c.tokenizer == "uniform_frames" else t) * h * w * 3 * d + d
    head = sum(d * classes + classes for _, classes in c.heads)
    token = c.classifier == "token"
    if c.attention == "factorised_encoder":
        encoders = token * d + (token + n_s) * d + c.num_layers * block + norm
        if c.temporal_layers:
            encoders += token * d + (token + n_t) * d + c.temporal_layers * block + norm
    else:
        encoders = token * d + (token + n_t * n_s) * d + c.num_layers * block + norm
    return tokenizer + encoders + head


@pytest.mark.parametrize("name", sorted({*NAMES, *GOLDEN}))
def test_parameter_counts_match_golden(name):
    assert name in NAMES, f"a golden count without a config; to update the list: {WRITE_GOLDEN}"
    assert name in GOLDEN, f"a config without a golden count; to update the list: {WRITE_GOLDEN}"
    assert parameters(name) == GOLDEN[name] == count_by_formula(experiment(name)[1])


def test_parameter_counts_of_table_2():
    counts = {row: GOLDEN[f"configs/paper/table2.py:{row}"] for row in rows("configs/paper/table2.py")}
    assert {row: count for row, count in counts.items() if "epic" not in row} == {
        "model1": 88_954_000,
        "model2": 115_062_928,
        "model3": 117_319_312,
        "model4": 88_952_464,
        "average_pool": 86_696_080,
    }
    heads = 769 * (97 + 300 - 400)  # two heads, 397 classes
    assert all(counts[f"{row}_epic100"] == counts[row] + heads for row in counts if "epic" not in row)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_trainable(name):
    """Passes the checks before compilation, with the published number of videos."""
    run, model = experiment(name)
    spec = run.clip_spec(model)
    assert (spec.num_frames, spec.image_size) == (model.num_frames, model.image_shape)
    dataset_info = catalog.get(run.data.name)
    videos = dataset_info.splits["train"]
    steps, per_epoch = run.total_steps(videos), videos / run.batch_size
    sizes = {"total_steps": steps, "steps_per_epoch": per_epoch, "batch_size": run.batch_size}
    schedule = optim.learning_rate_schedule(run.optimizer, **sizes)
    warmup = round(run.optimizer.warmup_epochs * per_epoch)
    assert float(schedule(0)) == 0
    np.testing.assert_allclose(float(schedule(warmup)), run.optimizer.learning_rate, rtol=1e-6)
    assert float(schedule(steps - 1)) < 1e-3 * run.optimizer.learning_rate
    if run.data.name != "moving_digits" and not run.derive:
        assert run.init_from.path is None
        assert steps == int(run.num_epochs * videos) // 64
        assert run.checkpoint.best_metric == ("action/top1" if len(dataset_info.heads) > 1 else "top1")
        for cores in (8, 16, 32, 64):
            assert run.batch_size % cores == run.evaluation.batch_size % cores == 0


# The appendix's table: learning rate, epochs, stride, resize, crop, colour, RandAugment (layers, magnitude), stochastic
# depth, label smoothing, mixup, views.
APPENDIX = {
    "kinetics400": (0.1, 30, 2, 256, 224, 0.8, 0, 10, 0.0, 0.0, 0.0, (4, 3)),
    "kinetics600": (0.1, 30, 2, 256, 224, 0.8, 0, 10, 0.0, 0.0, 0.0, (4, 3)),
    "moments_in_time": (0.25, 10, 2, 256, 224, 0.8, 0, 10, 0.0, 0.0, 0.0, (4, 3)),
    "epic_kitchens100": (0.5, 50, 1, 256, 224, 0.0, 2, 15, 0.2, 0.2, 0.1, (4, 1)),
    "something_something_v2": (0.5, 35, 1, 288, 256, 0.0, 2, 20, 0.3, 0.3, 0.3, (4, 3)),
}


@pytest.mark.parametrize("dataset", {**APPENDIX, **RECIPES})
def test_recipe_matches_appendix(dataset):
    run = Experiment.from_config(published(dataset, "ViViT-L/16x2", "factorised_encoder"))
    model = run.model_config(catalog.get(dataset).heads)
    actual = (run.optimizer.learning_rate, run.num_epochs, run.input["stride"], run.input["short_side"])
    actual += (model.image_size, run.augment.colour_jitter_probability)
    actual += (run.augment.rand_augment_layers, run.augment.rand_augment_magnitude)
    actual += (model.stochastic_depth_rate, run.label_smoothing, run.augment.mixup)
    assert (*actual, (run.evaluation.temporal_views, run.evaluation.spatial_views)) == APPENDIX[dataset]
    assert run.optimizer == optim.OptimizerConfig(
        name="sgd", learning_rate=run.optimizer.learning_rate, schedule="cosine", warmup_epochs=2.5, momentum=0.9
    )
    assert (run.optimizer.clip_norm, run.optimizer.weight_decay, run.batch_size) == (1.0, 0.0, 64)
    assert (run.input["random_crop"], run.input["flip_probability"], list(run.input["scale_jitter"])) == (
        True,
        0.5,
        [0.9, 1.33],
    )
    assert (model.name, model.num_frames, model.dropout_rate) == ("ViViT-L/16x2", 32, 0.0)
    assert run.augment.grayscale_probability == (0.1 if run.augment.colour_jitter_probability else 0.0)


@pytest.mark.parametrize(
    ("name", "learning_rate", "temporal_layers"),
    [
        ("configs/k400_vivit_b_fe.py", 0.05, 4),
        ("configs/k400_vivit_l_fe.py", 0.1, 24),
        ("configs/k600_vivit_l_fe.py", 0.05, 24),
        ("configs/epic100_vivit_l_fe.py", 0.5, 4),
        ("configs/ssv2_vivit_l_fe.py:released", 0.4, 4),
    ],
)
def test_released_models(name, learning_rate, temporal_layers):
    run, model = experiment(name)
    assert model.attention == "factorised_encoder"
    assert (run.optimizer.learning_rate, model.temporal_layers) == (learning_rate, temporal_layers)


def test_table_4_adds_one_regularizer_per_row():
    configs = [experiment(f"configs/paper/table4.py:{row}")[0].to_dict() for row in rows("configs/paper/table4.py")]

    def flat(config, prefix=""):
        for key, value in config.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    off = Experiment.from_config({}).to_dict()["augment"] | {"smoothing": 0.0, "stochastic_depth": 0.0}
    first = {**configs[0]["augment"], "smoothing": configs[0]["label_smoothing"]}
    first["stochastic_depth"] = configs[0]["model"]["stochastic_depth_rate"]
    strengths = {name: value for name, value in first.items() if value != off[name]}
    strengths.pop("rand_augment_magnitude", None)
    assert strengths == {"colour_jitter_probability": 0.8, "grayscale_probability": 0.1}
    added = [
        {key: value for key, value in flat(after) if dict(flat(before))[key] != value}
        for before, after in itertools.pairwise(configs)
    ]
    assert added == [
        {},  # the weights that the run starts from
        {"model.stochastic_depth_rate": 0.2},
        {"augment.rand_augment_layers": 2},
        {"label_smoothing": 0.2},
        {"augment.mixup": 0.1},
    ]


def test_token_counts_of_figures_8_and_9():
    tokens = {row: experiment(f"configs/paper/figure8.py:{row}")[1].grid for row in rows("configs/paper/figure8.py")}
    assert len(tokens) == 20
    assert all(grid == (32 // int(row.rsplit("_t", 1)[1]), 14, 14) for row, grid in tokens.items())
    for row in rows("configs/paper/figure9.py"):
        run, model = experiment(f"configs/paper/figure9.py:{row}")
        assert model.grid == (16, 14, 14)
        seen = model.num_frames * run.input["stride"] * run.evaluation.temporal_views
        assert seen == 256  # a Kinetics video has 250 frames


@pytest.mark.parametrize("file", [file for file in FILES if rows(file)])
def test_equal_rows_differ_in_initial_weights(file):
    same = {}
    for row, text in rows(file).items():
        same.setdefault(json.dumps(experiment(f"{file}:{row}")[0].to_dict()), []).append(text)
    for texts in same.values():
        assert sum("initialised from" not in text for text in texts) <= 1, texts


@pytest.mark.parametrize("file", [file for file in FILES if rows(file) and file not in PAPER])
def test_first_row_is_the_default(file):
    assert load(file).get_config().to_dict() == load(file).get_config(next(iter(rows(file)))).to_dict()


@pytest.mark.parametrize("file", FILES)
def test_docstring_has_command_hardware_and_accuracy(file):
    text = ast.get_docstring(ast.parse((REPOSITORY / file).read_text()))
    assert f"python -m vivit_jax.main --config={file}" in text
    assert "\nHardware: " in text
    assert "\nPublished: " in text or "Expected on the held-out videos" in text


def overview():
    """Returns the section "All configs" of docs/configs.md: each file's docstring, and its rows as a table."""
    sections = []
    for file in FILES:
        doc = ast.get_docstring(ast.parse((REPOSITORY / file).read_text()))
        # Commands are in the files; the hardware of most is described once.
        doc = "\n".join(line for line in doc.splitlines() if not line.startswith("    "))
        doc = re.sub(r"\nHardware: a Cloud TPU slice of `SLICES`[^;]*; the paper used TPU v3\.\s", "\n", doc)
        doc = re.sub(r"\n{3,}", "\n\n", doc)
        for label in ("Hardware: ", "Published: "):
            doc = doc.replace(f"\n{label}", f"\n\n{label}")
        lines = [f"### `{file}`", "", doc]
        if rows(file):
            lines += ["", "| row | |", "|---|---|"]
            lines += [f"| `:{row}` | {text} |" for row, text in rows(file).items()]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def write_docs():
    """Updates the section "All configs" of docs/configs.md."""
    head = DOCS_FILE.read_text().partition("\n## All configs\n")[0]
    DOCS_FILE.write_text(f"{head}\n## All configs\n\n{overview()}")


def test_docs_list_every_config():
    assert DOCS_FILE.read_text().endswith(f"## All configs\n\n{overview()}"), f"to update it: {WRITE_DOCS}"


def parse(*arguments):
    """Returns the config of a command line."""
    values = flags.FlagValues()
    argv = ["main", *arguments]
    holder = define_config("", values, argv)
    values(argv)
    return holder.value


def test_overrides_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(
        f"--config={REPOSITORY}/configs/paper/table2.py:model3",
        "--config.model.image_size=320",
        "--config.init_from.path=weights.npz",
        "--config.augment.mixup=0.5",
        "--config.input.scale_jitter=(0.5, 1.5)",
    )
    run = Experiment.from_config(config)
    assert (run.model["attention"], run.model["image_size"]) == ("factorised_self_attention", 320)
    assert (run.init_from.path, run.augment.mixup) == ("weights.npz", 0.5)
    assert run.input["scale_jitter"] == [0.5, 1.5]
    with pytest.raises(AttributeError, match="mixup"):
        parse(f"--config={REPOSITORY}/configs/k400_vivit_l.py", "--config.mixup=0.5")


@pytest.mark.parametrize("row", ["", ":", ":model5"])
@pytest.mark.parametrize("file", PAPER)
def test_unknown_row_error_lists_all_rows(file, row):
    with pytest.raises(flags.IllegalFlagValueError) as error:
        parse(f"--config={REPOSITORY / file}{row}")
    text = str(error.value)
    assert "Traceback" not in text
    assert ("there is no row 'model5'" if row == ":model5" else "a row is needed") in text
    assert all(f"  {name} " in text for name in rows(file))
    with pytest.raises(ConfigError):
        load(file).get_config(row.removeprefix(":"))


def test_unknown_recipe_and_set_crop():
    with pytest.raises(ConfigError, match="'kinetics700', only for kinetics400"):
        published("kinetics700", "ViViT-B/16x2", "spatiotemporal")
    config = published("kinetics400", "ViViT-B/16x2", "spatiotemporal")
    set_crop(config, 320)
    assert (config.model.image_size, config.input.short_side) == (320, 366)
    with pytest.raises(AttributeError):
        config.model.layers = 3


@pytest.mark.parametrize("row", ["k400_l", "k600_h_jft", "mit_l", "epic100_l_fe", "ssv2_l_fe"])
def test_missing_data_error_names_its_source(row, tmp_path):
    from vivit_jax.train import train  # TensorFlow: a few seconds

    run, _ = experiment(f"configs/paper/table6.py:{row}")
    dataset_info = catalog.get(run.data.name)
    with pytest.raises(FileNotFoundError) as error:
        train(dataclasses.replace(run, data=dataclasses.replace(run.data, dir=str(tmp_path))), tmp_path / "run")
    assert str(tmp_path / run.data.name) in str(error.value)
    assert dataset_info.source in str(error.value)
