"""Throughput and averaged training metrics."""

import types

import jax.numpy as jnp
import pytest

from vivit_jax.config.experiment import Experiment
from vivit_jax.cost.counts import train_count
from vivit_jax.models import ViViTConfig
from vivit_jax.train import throughput


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_throughput_between_readings_excludes_pauses(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=clock))
    speed = throughput.Throughput(clips=8, devices=4, flops=40.0, peak=5.0)
    assert speed.read(1) == {}
    speed.start(1)
    for step, wait in ((2, 0.5), (3, 1.5), (4, 9.0)):
        speed.waited(step, wait)
        clock.now += wait + 1.0
        if step == 3:
            clock.now += 50.0
            speed.paused(50.0)
            values = speed.read(3)  # 4 s for 2 steps, 2 s of them waited
    assert values == pytest.approx(
        {
            "steps_per_second": 0.5,
            "clips_per_second": 4.0,
            "clips_per_second_per_device": 1.0,
            "data_wait_seconds": 1.0,
            "model_flop_utilisation": 0.5 * 40 / (4 * 5),
        }
    )
    assert speed.read(4)["data_wait_seconds"] == 9.0
    unknown = throughput.Throughput(8, 4, 40.0)
    unknown.start(0)
    clock.now += 1
    assert "model_flop_utilisation" not in unknown.read(1)


def test_model_flops_are_close_to_the_compilers_count():
    fields = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "mlp_dim": 192, "num_frames": 4, "image_size": 32}
    config = ViViTConfig(**fields, tubelet_size=(2, 8, 8), attention="spatiotemporal", num_classes=5)
    model = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
    clip, _ = train_count(Experiment.from_config({"model": model}), config)
    # The compiler counts everything else too (softmax, norms), the first layer's input has no gradient.
    assert throughput.model_flops(config, 3) / 3 == pytest.approx(2 * clip, rel=0.2)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v3", 61.5e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_peak_flops_by_device_kind(kind, peak):
    assert throughput.peak_flops(kind) == peak


class Recorder:
    """Stands in for the writer."""

    def __init__(self):
        self.written = {}

    def write_scalars(self, step, scalars):
        self.written[step] = dict(scalars)


def test_skipped_steps_are_counted_but_not_averaged():
    kept = Recorder()
    window = throughput.TrainMetrics(kept, throughput.Throughput(8, 1, 1.0), every_steps=2)
    steps = [(2.0, 0.0, 0.3), (jnp.nan, 1.0, 0.2), (4.0, 0.0, 0.1)]
    for step, (loss, skipped, rate) in enumerate(steps, start=1):
        metrics = {"loss": loss, "loss/verb": loss / 2, "skipped": skipped, "learning_rate": rate}
        window.after_step(step, {name: jnp.float32(value) for name, value in metrics.items()})
    window.finish()
    assert kept.written[2]["train/loss"] == 2.0
    assert kept.written[2]["train/skipped"] == 1.0
    assert kept.written[2]["train/learning_rate"] == pytest.approx(0.2)
    assert kept.written[3]["train/loss/verb"] == 2.0
    assert kept.written[3]["train/skipped"] == 0.0
