"""Compilation cache, memory report and out-of-memory advice of the train step."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_models import small_config
from vivit_jax.config.experiment import Experiment, default_config
from vivit_jax.models import ViViT
from vivit_jax.train import compiled_step
from vivit_jax.train_step import TrainProgram, remat
from vivit_jax.utils import devices


def test_compilation_cache_in_workdir_restores_the_setting(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with compiled_step.compilation_cache("workdir", tmp_path):
            jax.jit(lambda x: x * 3.25 + jnp.sin(x)).lower(jnp.ones(7)).compile()
        with compiled_step.compilation_cache("off", tmp_path):
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    assert any((tmp_path / compiled_step.CACHE_FOLDER).iterdir())
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    with compiled_step.compilation_cache("workdir", tmp_path):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")


def experiment(**fields):
    config = default_config()
    config.update_from_flattened_dict(fields)
    return Experiment.from_config(config)


def test_out_of_memory_lists_advice_not_yet_followed():
    run = experiment(**{"batch_size": 64, "model.scan_layers": True, "model.remat": "dots"})
    with (
        pytest.raises(compiled_step.OutOfDeviceMemory, match="the train step does not fit") as error,
        compiled_step.oom_advice("the train step", compiled_step.training_advice(run)),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nlong table")
    text = str(error.value)
    for line in ("model.dtype=bfloat16", "model.remat=full", "accumulate_steps=2", "mesh.fsdp=-1", "allocating 99"):
        assert line in text
    assert "scan_layers" not in text
    assert "long table" not in text
    for fields in ({}, {"model.scan_layers": True, "model.remat": "full"}):  # `auto` has tried both
        done = experiment(**{"batch_size": 8, "model.dtype": "bfloat16"} | fields)
        words = ("remat", "scan_layers", "accumulate")
        assert not any(word in line for word in words for line in compiled_step.training_advice(done))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), compiled_step.oom_advice("it", []):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def make_program(run):
    return run.train_program({"label": 3}, None)


@pytest.fixture(scope="module")
def small():
    """(experiment, first state on the host, batch) of a small model."""
    sizes = {"num_layers": 4, "hidden_size": 8, "num_heads": 2, "mlp_dim": 64, "num_frames": 8, "image_size": 64}
    run = experiment(**{"batch_size": 4} | {f"model.{name}": size for name, size in sizes.items()})
    program = make_program(run)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (4, *program.model.config.video_shape), dtype=np.uint8),
        "label": {"label": np.array([0, 1, 2, 1], np.int32)},
        "mask": np.ones(4, np.float32),
    }
    return run, jax.device_get(program.init_state(0)), batch


def start(small, workdir, caplog):
    """Takes the first step of a run; returns its results and the logged choices, those that did not fit included."""
    run, state, batch = small
    caplog.clear()
    with caplog.at_level("INFO"), compiled_step.compilation_cache("off", workdir):
        out = compiled_step.CompiledStep(make_program(run), run, workdir)(jax.device_put(state), batch)
    return jax.device_get(out), re.findall(r"train step \((remat=\w+, scan_layers=\w+)\), compiled", caplog.text)


NONE, DOTS, FULL = "remat=none, scan_layers=False", "remat=dots, scan_layers=True", "remat=full, scan_layers=True"


def test_auto_takes_the_least_recomputation_that_fits(small, tmp_path, monkeypatch, caplog):
    """The choice, its cache, and the same numbers whatever the memory. Each program is compiled once."""
    run, state, batch = small
    program = make_program(run)
    choices = remat.choices(program.model.config, "cpu")
    compiled = {choice.remat: remat.apply(program, choice).step.lower(state, batch).compile() for choice in choices}
    peaks = [devices.peak_bytes(one.memory_analysis(), "cpu") / remat.USABLE["cpu"] for one in compiled.values()]
    assert peaks[0] > peaks[1] > peaks[2]

    def with_model(self, model):
        lowered = types.SimpleNamespace(compile=lambda: compiled[model.config.remat])
        return dataclasses.replace(self, model=model, step=types.SimpleNamespace(lower=lambda *_: lowered))

    monkeypatch.setattr(TrainProgram, "with_model", with_model)
    results = []
    # The last: nothing fits by the compiler's count, an upper limit, so that the step is tried all the same.
    for i, (limit, tried) in enumerate(
        [(peaks[0], [NONE]), (peaks[1], [NONE, DOTS]), (peaks[2], [NONE, DOTS, FULL]), (1e5, [NONE, DOTS, FULL])]
    ):
        monkeypatch.setattr(devices, "device_bytes", lambda limit=limit: int(limit) + 1)
        workdir = tmp_path / str(i)
        out, choices = start(small, workdir, caplog)
        assert choices == tried
        again, choices = start(small, workdir, caplog)
        assert choices == tried[-1:], "a second start compiles what the first has chosen"
        jax.tree.map(np.testing.assert_array_equal, again, out)
        results.append(out)
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, results[0])
    next((tmp_path / "0").iterdir()).write_text("{")
    assert start(small, tmp_path / "0", caplog)[1] == [NONE, DOTS, FULL]


def test_auto_goes_on_where_the_compiler_refuses(small, tmp_path, monkeypatch, caplog):
    run, state, batch = small
    program = make_program(run)

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 44.28G of 15.75G hbm.")

    def with_model(_, model):
        refused = model.config.remat in refusing
        step = types.SimpleNamespace(lower=refuse) if refused else program.make_step(model)
        return dataclasses.replace(program, model=model, step=step)

    monkeypatch.setattr(TrainProgram, "with_model", with_model)
    refusing = ("none", "dots")
    assert start(small, tmp_path, caplog)[1] == [FULL]
    assert f"does not fit the devices with {DOTS}" in caplog.text
    refusing = ("none", "dots", "full")
    with pytest.raises(compiled_step.OutOfDeviceMemory, match=r"Used 44.28G") as error:
        compiled_step.CompiledStep(program, run, tmp_path)(state, batch)
    assert "remat" not in str(error.value)


def one_program(step):
    """Returns a program of a model for which nothing is to be chosen, with this train step."""
    model = ViViT(small_config(remat="none", scan_layers=False))
    return TrainProgram(model, None, 0.0, None, None, lambda model: jax.jit(step, donate_argnums=0))


def test_step_is_compiled_once_and_donates_its_state(caplog, tmp_path):
    traced = []

    def step(state, batch):
        traced.append(1)
        return state + batch.sum(), {"loss": batch.mean()}

    train_step = compiled_step.CompiledStep(one_program(step), experiment(), tmp_path)
    state = jnp.zeros(1 << 18)
    with caplog.at_level("INFO"):
        first, _ = train_step(state, jnp.ones(4))
    second, metrics = train_step(first, jnp.ones(4))
    assert len(traced) == 1
    assert state.is_deleted()
    assert first.is_deleted()
    assert float(second[0]) == 8.0
    assert float(metrics["loss"]) == 1.0
    assert "state and batch 1.0 MiB" in caplog.text
    assert "new results 0.0 MiB" in caplog.text  # in place of the state
    assert not any(tmp_path.iterdir()), "nothing was chosen"


@pytest.mark.parametrize(("share", "kept"), [(0.1, True), (0.15, False)])
def test_freed_memory_is_kept_where_the_step_takes_less_than_an_eighth(share, kept, monkeypatch, tmp_path):
    """The heap may grow to three times the peak of a step."""
    calls = []
    state, batch = jnp.zeros(1 << 18), jnp.ones(4)
    program = one_program(lambda state, batch: (state + batch.sum(), {}))
    memory = program.make_step(None).lower(state, batch).compile().memory_analysis()
    monkeypatch.setattr(devices, "device_bytes", lambda: round(devices.peak_bytes(memory, "cpu") / share))
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: calls.append(1))
    compiled_step.CompiledStep(program, experiment(), tmp_path)(state, batch)
    assert bool(calls) == kept


@pytest.mark.parametrize(("platform", "peak", "said"), [("cpu", 5, "9.0"), ("gpu", 20, "21.0"), ("tpu", 5, "6.0")])
def test_peak_memory_is_the_compilers_on_tpu_else_the_sum(platform, peak, said):
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=3 << 20,
        output_size_in_bytes=2 << 20,
        alias_size_in_bytes=1 << 20,
        temp_size_in_bytes=4 << 20,
        generated_code_size_in_bytes=1 << 20,
        peak_memory_in_bytes=peak << 20,
    )
    words = compiled_step.format_memory(analysis, platform, 2**30)
    assert words.startswith(f"at most {said} MiB of 1.00 GiB: state and batch 3.0 MiB")
