"""Compilation cache, memory report and out-of-memory advice of the train step."""

import types

import jax
import jax.numpy as jnp
import pytest

from vivit_jax.config.experiment import Experiment, default_config
from vivit_jax.train import compiled_step


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
    run = experiment(**{"batch_size": 64, "model.scan_layers": True})
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
    done = experiment(**{"batch_size": 8, "model.scan_layers": True, "model.remat": "full", "model.dtype": "bfloat16"})
    assert not any("remat" in line or "accumulate" in line for line in compiled_step.training_advice(done))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), compiled_step.oom_advice("it", []):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_step_is_compiled_once_and_donates_its_state(caplog):
    traced = []

    def step(state, batch):
        traced.append(1)
        return state + batch.sum(), {"loss": batch.mean()}

    train_step = compiled_step.CompiledStep(jax.jit(step, donate_argnums=0), experiment())
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


@pytest.mark.parametrize(("platform", "peak", "said"), [("cpu", 5, "9.0"), ("gpu", 20, "21.0"), ("tpu", 5, "6.0")])
def test_peak_memory_is_the_compilers_on_tpu_else_the_sum(platform, peak, said):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=3 << 20,
        output_size_in_bytes=2 << 20,
        alias_size_in_bytes=1 << 20,
        temp_size_in_bytes=4 << 20,
        generated_code_size_in_bytes=1 << 20,
        peak_memory_in_bytes=peak << 20,
    )
    words = compiled_step.format_memory(memory, platform, 2**30)
    assert words.startswith(f"at most {said} MiB of 1.00 GiB: state and batch 3.0 MiB")
