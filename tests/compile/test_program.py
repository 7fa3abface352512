"""The steps of a config lowered and compiled for the mesh of a slice, with virtual CPU devices in its place."""

import jax
import pytest

from vivit_jax.compile import report, slices
from vivit_jax.compile.program import Compiled, Target, compile_ahead
from vivit_jax.config.experiment import Experiment, default_config


def make_target(**sections):
    config = default_config()
    config.data.name, config.batch_size, config.evaluation.batch_size = "kinetics400", 8, 4
    config.model.update({"name": "ViViT-Ti/16x2", "num_layers": 1, "num_frames": 4, "image_size": 32})
    config.mesh.update({"data": 4, "fsdp": 2})
    config.update(sections)
    return Target.on(Experiment.from_config(config), {"label": 5}, jax.devices()[:8])


@pytest.fixture(scope="module")
def target():
    return make_target()


def test_train_step_reports_memory_and_gradient_traffic(target):
    assert (target.batch_shards, target.clips_per_shard("train")) == (8, 1)
    compiled = compile_ahead(target.lower_train(1), target.mesh)
    assert compiled.fits
    assert compiled.peak >= compiled.argument
    # Gradients are summed over both axes of the batch.
    assert {"data", "fsdp"} <= {axis for one in compiled.traffic for axis in one.axis.split("+")}
    lines = report.summarize(compiled, slices.parse("v3-8"))
    assert lines[0].startswith("memory")
    assert lines[-1].startswith("compiled")
    model = target.experiment.model_config(target.heads)
    assert target.train_work(2, model) == pytest.approx(2 * target.train_work(1, model), rel=0.3)


def test_a_program_whose_text_cannot_be_read_still_reports_its_memory(target, monkeypatch, capsys):
    """jaxlib 0.10.2 cannot read what libtpu 0.0.42 makes of epic100_vivit_l_fe for v6e-8 (RET_CHECK failure)."""

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", as_text)
    assert report.print_report(target, slices.parse("v3-8"), "train")
    printed = capsys.readouterr().out
    assert "memory" in printed
    assert "HBM        unknown" in printed
    assert "MFU" not in printed
    assert "traffic" not in printed


def test_evaluation_step_is_lowered_for_the_mesh(target):
    lowered = target.lower_eval(1)
    assert lowered.in_tree.num_leaves > 3
    assert "8x" in lowered.as_text()


def test_a_batch_that_does_not_divide_is_rejected(target):
    with pytest.raises(ValueError, match=r"^evaluation\.batch_size=4 is not divided by the 8 devices"):
        target.clips_per_shard("eval")
    microbatches = make_target(optimizer={"accumulate_steps": 2})
    with pytest.raises(
        ValueError, match=r"^batch_size / optimizer\.accumulate_steps=4 is not divided by the 8 devices"
    ):
        microbatches.clips_per_shard("train")


def test_masked_pretraining_is_compiled_with_its_decoder(monkeypatch, capsys):
    monkeypatch.setattr(report.throughput, "peak_flops", lambda kind: 1e12)
    pretrain, evaluation = {"mask_ratio": 0.5, "decoder_layers": 1}, {"batch_size": 8}
    target = make_target(pretrain=pretrain, evaluation=evaluation)
    assert "decoder" in str(target.lower_eval(1).in_tree)
    assert all(report.print_report(target, slices.parse("v3-8"), step) for step in ("train", "eval"))
    printed = capsys.readouterr().out
    assert "evaluation, 8 videos of 1 views" in printed
    assert printed.count("FLOP per byte") == 2
    assert "MFU" not in printed


def test_largest_batch_is_searched_in_whole_microbatches(monkeypatch, capsys):
    target, fits = make_target(batch_size=24, optimizer={"accumulate_steps": 3}), iter([True, True, False, False])
    monkeypatch.setattr(report, "compile_ahead", lambda *_: Compiled(next(fits), 1))
    report.print_largest_batch(target)
    assert "48 clips, 6 in each of 8 shards" in capsys.readouterr().out


@pytest.mark.parametrize(("moved", "bound"), [(1e9, "at most 50%, by compute"), (4e9, "at most 25%, by HBM")])
def test_roofline_is_set_by_the_slower_of_compute_and_hbm(moved, bound):
    """2 TFLOP at 1 TFLOP/s take 2 s, half of them useful; 1 GB at 1 GB/s takes 1 s."""
    lines = report.roofline(2e12, moved, 1e12, 1e12, 1e9)
    assert bound in lines[-1]
    assert lines[0].endswith("2000 ms at its peak")
    assert f"{2e12 / moved:.0f} FLOP per byte; the device is balanced at 1000" in lines[2]
