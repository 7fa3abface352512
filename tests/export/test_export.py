"""Exported models are loaded in fresh processes that cannot import this package, and give its logits."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.helpers.small_models import MODELS, random_params, small_config
from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert
from vivit_jax.config.experiment import CONFIG_FILE, Experiment
from vivit_jax.data.pipeline import cutter
from vivit_jax.data.selection.sampling import ClipSpec, view_frames
from vivit_jax.export import export
from vivit_jax.export.formats import Shipped
from vivit_jax.models import ViViT
from vivit_jax.train_step import as_heads, normalise

LABELS = {"verb": ["打|篮球", 'a "b"', "c"], "noun": ["x", "y", "z", "w"]}
PREPROCESSING = {"num_frames": 4, "image_size": [8, 12], "stride": 2, "short_side": 10, "sampling": "random_start"}
PREPROCESSING |= {"stored_short_side": 64, "stored_fps": None, "pixels": "x / 127.5 - 1"}
STEP = 7
VIEWS = (2, 3)
# Each runs FOLDER/inputs.npz through the exported models below FOLDER, and writes FOLDER/NAME.npz.
LOADERS = {
    "stablehlo": """
import jax, jax.export
from safetensors.numpy import load_file
for folder in sorted(root.glob("stablehlo*")):
    model = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert set(model.platforms) == {"cpu", "cuda", "tpu"}
    weights = load_file(folder / "weights.safetensors")
    for clips in (1, 3):
        out[f"{folder.name}/{clips}"] = model.call(weights, inputs["clips"][:clips])
""",
    "savedmodel": """
import json
import tensorflow as tf
signatures = tf.saved_model.load(str(root / "savedmodel")).signatures
names = {"clips": "serving_default", "large": "serving_default", "video": "video", "beyond": "video"}
for name, signature in names.items():
    out[name] = signatures[signature](frames=tf.constant(inputs[name]))
assert json.loads(signatures["info"]()["json"].numpy()) == json.loads((root / "savedmodel/model.json").read_text())
out["labels"] = {h: np.array([n.decode() for n in names.numpy()]) for h, names in signatures["labels"]().items()}
""",
    "huggingface": """
import importlib.util
find_spec = importlib.util.find_spec  # torchvision is not needed, and may be one for another build of PyTorch
importlib.util.find_spec = lambda name, *rest: None if name.startswith("torchvision") else find_spec(name, *rest)
import torch, transformers
processor = transformers.VivitImageProcessor.from_pretrained(root / "huggingface")
model = transformers.VivitForVideoClassification.from_pretrained(root / "huggingface")
pixels = torch.tensor(inputs["clips"]).permute(0, 1, 4, 2, 3) / 127.5 - 1
fitted = processor([list(clip) for clip in inputs["large"]], return_tensors="pt").pixel_values
with torch.no_grad():
    out["clips"], out["large"] = ({"label": model(x).logits.numpy()} for x in (pixels, fitted))
""",
}


def load_in_fresh_process(kind, folder):
    script = f"""
import pathlib, sys
sys.modules["vivit_jax"] = None  # an import of it is an error
sys.modules["triton"] = None
import numpy as np
root, out = pathlib.Path(sys.argv[1]), {{}}
inputs = np.load(root / "inputs.npz")
{LOADERS[kind]}
flat = {{f"{{name}}/{{head}}": np.asarray(x) for name, heads in out.items() for head, x in heads.items()}}
np.savez(root / "{kind}.npz", **flat)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / f"{kind}.npz")


def inputs(folder):
    rng = np.random.default_rng(3)
    arrays = {
        "clips": rng.integers(0, 256, (3, 4, 8, 12, 3), np.uint8),
        "large": rng.integers(0, 256, (2, 4, 21, 36, 3), np.uint8),
        "video": rng.integers(0, 256, (19, 15, 33, 3), np.uint8),
        "beyond": rng.integers(90, 166, (19, 150, 131, 3), np.uint8),  # the short side of the records
    }
    np.savez(folder / "inputs.npz", **arrays)
    return arrays


def evaluation_views(frames, spec, temporal=1, spatial=1):
    """The views that `predict` cuts out of decoded frames, uint8 [V, T, h, w, 3]: frame by frame."""
    cut = cutter(spec.image_size, spec.short_side, spatial)
    numbers = [view_frames(len(frames), spec, temporal, view) for view in range(temporal)]
    return np.concatenate([np.stack([cut(frames[i]).numpy() for i in clip], axis=1) for clip in numbers])


def own_logits(config, params, clips):
    return jax.device_get(as_heads(ViViT(config).apply({"params": params}, normalise(clips))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of a run of Model 2 with its files, config, parameters)."""
    workdir = tmp_path_factory.mktemp("runs") / "mine"
    config = small_config(**MODELS["model2"], num_classes={head: len(names) for head, names in LABELS.items()})
    params = random_params(config, dtype=np.float32)
    fields = {"model": {name: value for name, value in config.to_dict().items() if name != "num_classes"}}
    fields |= {"data": {"name": "something_something_v2", "dir": "/home/me/secret"}, "num_steps": 9, "batch_size": 6}
    fields |= {"evaluation": {"temporal_views": VIEWS[0], "spatial_views": VIEWS[1]}, "input": {"stride": 2}}
    fields |= {"init_from": {"path": "/home/me/L_16.npz"}}
    metadata = {"config": Experiment.from_config(fields).to_dict(), "heads": dict(config.heads), "class_names": LABELS}
    metadata |= {"preprocessing": PREPROCESSING, "data": {"dataset": "x", "examples": 1234}, "step": STEP}
    with checkpointing.Checkpoints(workdir / checkpointing.FOLDER) as checkpoints:
        checkpoints.save(STEP, {"params": params, "ema": params}, metadata)
    (workdir / CONFIG_FILE).write_text(json.dumps(metadata["config"]))
    lines = [json.dumps({"step": step, "time": 1.7e9 + 86400 * step, "train/loss": 1.0}) for step in (1, STEP)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    evaluation = {"checkpoint": str(workdir / checkpointing.FOLDER / str(STEP)), "split": "validation", "views": VIEWS}
    evaluation |= {"videos": 50, "unreadable": 0, "metrics": {"verb/top1": 0.625, "verb/loss": 1.0, "noun/top1": None}}
    evaluation["metrics"]["ema/verb/top1"] = 0.75
    evaluation |= {"data": metadata["config"]["data"]}
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    return workdir, config, params


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    """The run's checkpoint as `stablehlo`, in a folder of its own."""
    folder = tmp_path_factory.mktemp("shipped") / "stablehlo"
    export(run[0] / checkpointing.FOLDER / str(STEP), folder, "stablehlo")
    return folder


def card_of(folder):
    """(metadata, text) of a model card."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_stablehlo_gives_the_logits_of_the_model(run, shipped):
    _, *of_run = run
    root, expected = shipped.parent, {"stablehlo": of_run}
    arrays = inputs(root)
    for name in ("model1", "model3"):
        config = small_config(**MODELS[name], attention_backend="tiled")
        params = random_params(config, dtype=np.float32)
        convert.save_params(params, root / name, "orbax", config)
        export(root / name, root / f"stablehlo_{name}", "stablehlo")
        expected[f"stablehlo_{name}"] = config, params
    found = load_in_fresh_process("stablehlo", root)
    for name, (config, params) in expected.items():
        for head, logits in own_logits(config, params, arrays["clips"]).items():
            for clips in (1, 3):
                np.testing.assert_allclose(found[f"{name}/{clips}/{head}"], logits[:clips], atol=1e-5)
        called = re.findall(r"custom_call @(\w+)", _module(root / name))
        assert set(called) == {"shape_assertion"}, "a kernel of one platform"
    example = np.load(shipped / "example.npz")
    for head, logits in own_logits(*of_run, example["frames"]).items():
        np.testing.assert_allclose(example[head], logits, atol=1e-5)
    info = json.loads((shipped / "model.json").read_text())
    assert info["labels"] == LABELS
    assert info["preprocessing"] == PREPROCESSING | {"assumed": ""}
    assert info["scores"] == {"verb": "softmax", "noun": "softmax"}


def _module(folder):
    return jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).mlir_module()


@pytest.mark.slow
def test_savedmodel_prepares_frames_as_evaluation_does(run, tmp_path):
    arrays, (workdir, config, params) = inputs(tmp_path), run
    export(workdir, tmp_path / "savedmodel", "savedmodel")
    found = load_in_fresh_process("savedmodel", tmp_path)
    spec, whole = (ClipSpec(4, (8, 12), stride=stride, short_side=10) for stride in (2, 1))
    large = np.concatenate([evaluation_views(clip, whole) for clip in arrays["large"]])
    for name, clips in {"clips": arrays["clips"], "large": large}.items():
        for head, logits in own_logits(config, params, clips).items():
            np.testing.assert_allclose(found[f"{name}/{head}"], logits, atol=1e-5)
    views = evaluation_views(arrays["video"], spec, *VIEWS)
    assert len(views) == 6
    for head, logits in own_logits(config, params, views).items():
        np.testing.assert_allclose(found[f"video/{head}"], logits.mean(0, keepdims=True), atol=1e-5)
        assert list(found[f"labels/{head}"]) == LABELS[head]
    stored = [Image.fromarray(frame).resize((64, 73), Image.Resampling.BICUBIC) for frame in arrays["beyond"]]
    as_stored, as_given = (evaluation_views(np.array(frames), spec, *VIEWS) for frames in (stored, arrays["beyond"]))
    for head, logits in own_logits(config, params, as_stored).items():
        expected, error = logits.mean(0), np.abs(own_logits(config, params, as_given)[head] - logits).mean(0).max()
        np.testing.assert_allclose(found[f"beyond/{head}"][0], expected, atol=0.3 * error)  # pixels differ by 1


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    """(folder with `huggingface`, config, parameters) of a Model 1."""
    folder = tmp_path_factory.mktemp("hf")
    config = small_config(**MODELS["model1"])
    params = random_params(config, dtype=np.float32)
    convert.save_params(params, folder / "run", "orbax", config, {"label": list("abcde")}, preprocessing=PREPROCESSING)
    export(folder / "run", folder / "huggingface", "huggingface")
    return folder, config, params


def test_huggingface_folder_has_labels_and_preprocessing(huggingface, tmp_path):
    folder, config, params = huggingface
    read, loaded = convert.load_model(folder / "huggingface")
    assert read.to_dict() == config.to_dict()
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    stored = {name: json.loads((folder / "huggingface" / f"{name}.json").read_text()) for name in ("config", "model")}
    assert stored["config"]["id2label"] == {str(i): name for i, name in enumerate("abcde")}
    assert stored["model"]["preprocessing"]["stride"] == 2
    processor = json.loads((folder / "huggingface" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 10}
    assert processor["crop_size"] == {"height": 8, "width": 12}
    metadata, text = card_of(folder / "huggingface")
    assert metadata["tags"][-1] == "transformers"
    assert "not on record: these are converted weights" in text
    # From a Hugging Face folder again, without any record.
    export(folder / "huggingface", tmp_path / "again", "stablehlo")
    assert json.loads((tmp_path / "again" / "model.json").read_text())["labels"] == {"label": list("abcde")}
    assert "**Assumed**" in card_of(tmp_path / "again")[1]


def test_transformers_gives_the_same_logits(huggingface):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, config, params = huggingface
    arrays = inputs(folder)
    found = load_in_fresh_process("huggingface", folder)
    np.testing.assert_allclose(found["clips/label"], own_logits(config, params, arrays["clips"])["label"], atol=1e-5)
    large = np.concatenate([evaluation_views(c, ClipSpec(4, (8, 12), short_side=10)) for c in arrays["large"]])
    # The processor resizes with Pillow, whose rounding differs.
    np.testing.assert_allclose(found["large/label"], own_logits(config, params, large)["label"], atol=0.05)


def test_card_tells_the_record_of_the_run_and_no_more(shipped):
    metadata, text = card_of(shipped)
    assert "license" not in metadata
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "something_something_v2"
    assert result["metrics"] == [{"type": "accuracy", "name": "verb/top1 with 2 x 3 views", "value": 0.625}]
    for part in ("62.50%", "7 steps of 6 clips", "1,234 training examples", "| `batch_size` | `6` | `64` |"):
        assert part in text
    for part in ("2023-11-15 to 2023-11-21", "L_16.npz", "打\\|篮球", "short side of 10", "distance of 2"):
        assert part in text
    assert "/home/me" not in text
    assert str(shipped.parents[1]) not in text
    hub = pytest.importorskip("huggingface_hub")
    (parsed,) = hub.ModelCard.load(shipped / "README.md").data.eval_results
    assert parsed.metric_value == 0.625
    assert parsed.dataset_split == "validation"


@pytest.mark.parametrize(
    ("exported", "step", "evaluated", "accuracy"),
    [
        ("params", 5, "params", None),
        ("params", STEP, "ema", None),
        ("ema", STEP, "ema", 0.625),
        ("ema", STEP, None, 0.75),
    ],
)
def test_only_the_accuracy_of_these_weights_is_quoted(run, tmp_path, monkeypatch, exported, step, evaluated, accuracy):
    workdir, *_ = run
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    other = evaluation | {"checkpoint": f"{evaluation['checkpoint'].rpartition('/')[0]}/{step}"}
    if evaluated is not None:  # by `--mode=eval`, of one kind alone
        other |= {"weights": evaluated, "metrics": {"verb/top1": 0.625}}
    (workdir / "evaluation.json").write_text(json.dumps(other))
    precision, logits = [], Shipped.logits
    noted = lambda *arguments: precision.append(jax.config.jax_default_matmul_precision) or logits(*arguments)  # noqa: E731
    monkeypatch.setattr(Shipped, "logits", noted)
    export(workdir, tmp_path / "b", "stablehlo", exported)
    assert precision == ["highest", None], "of the example, and of the module"
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    metadata, text = card_of(tmp_path / "b")
    assert ("Not on record: no evaluation of these weights" in text) == (accuracy is None)
    if accuracy is not None:
        metrics = metadata["model-index"][0]["results"][0]["metrics"]
        assert metrics == [{"type": "accuracy", "name": "verb/top1 with 2 x 3 views", "value": accuracy}]


def test_what_cannot_be_exported_leaves_no_files(run, tmp_path):
    workdir, *_ = run
    with pytest.raises(ValueError, match="Model 1"):
        export(workdir, tmp_path / "new", "huggingface")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="choose another --output"):
        export(workdir, tmp_path, "stablehlo")
    config = small_config(num_classes=None)
    convert.save_params(random_params(config, dtype=np.float32), tmp_path / "headless", "orbax", config)
    with pytest.raises(checkpointing.CheckpointError, match="without a classifier"):
        export(tmp_path / "headless", tmp_path / "new", "stablehlo")
