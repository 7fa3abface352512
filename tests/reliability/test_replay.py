"""A dump of a failed step is repeated without data set and mesh of the run: the clip and the layer are named."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.experiment import experiment
from vivit_jax.train import replay
from vivit_jax.train.skipped_steps import SkippedSteps, TooManySkippedSteps
from vivit_jax.train_step import TrainState

HEADS = {"verb": 3, "noun": 4}
STEP = 5


def dumped(folder, change, processes=1, heads=HEADS, **fields):
    """A dump of step 5, from the parameters that `change` gives; the clips are grey, clip 2 white, 7 is padding."""
    run = experiment(folder / "no data", **fields)
    built = run.train_program(heads, None)
    params = change(jax.tree.map(np.array, built.init_state(0).params))
    state = TrainState.create(params, built.optimizer, built.ema_decay).replace(step=jnp.int32(STEP))
    size = run.batch_size
    t, h, w, c = built.model.config.video_shape
    video = np.full((size, t, h, w, c), 128, np.uint8)
    video[2] = 255
    batch = {
        "video": video,
        "label": {head: np.arange(size, dtype=np.int32) % n for head, n in heads.items()},
        "mask": np.r_[np.ones(size - 1), 0].astype(np.float32),
        "index": np.r_[np.arange(20, 20 + size - 1), -1],
    }
    metadata = {"config": run.to_dict(), "heads": heads, "data": {"examples": 20}}
    train_set = types.SimpleNamespace(locate=lambda index: f"video-{index}")
    metrics = {"skipped": 1.0, "skipped_in_a_row": 1, "loss": np.nan, "gradient_norm": np.nan}
    with pytest.raises(TooManySkippedSteps, match="--replay="):
        SkippedSteps(1, train_set, folder, metadata).after_step(STEP, state, metrics, batch)
    failed = folder / "failed_step"
    if processes > 1:  # as several processes write it
        with np.load(failed / "batch_0.npz") as arrays:
            arrays = dict(arrays)
        for number, rows in enumerate(np.split(np.arange(size), processes)):
            np.savez(failed / f"batch_{number}.npz", **{name: values[rows] for name, values in arrays.items()})
    return failed


@pytest.mark.slow
def test_clip_that_overflows_is_named_from_the_dump_of_two_processes(tmp_path):
    def change(params):
        params["tokenizer"]["kernel"][:] = 1e17
        return params

    folder = dumped(tmp_path, change, processes=2, mesh__data=2, mesh__fsdp=4)
    *lines, last = replay.replay(folder)
    clips = [line for line in lines if line.startswith("  clip ")]
    assert len(clips) == 8
    assert [line for line in clips if "BROKEN" in line] == [clips[2]]
    assert "clip 2, video-22, alone: loss nan" in clips[2]
    assert clips[2].endswith("BROKEN: spatial_encoder/layers[0]/norm_attention")
    assert "clip 7, padding" in clips[7]
    assert lines[-1].startswith("1 clips go wrong alone, the first in clip 2, video-22: spatial_encoder/layers[0]")
    assert last.startswith("Step 5 is skipped again: loss nan")


@pytest.mark.slow
def test_layer_that_overflows_is_named(tmp_path):
    def change(params):
        params["encoder"]["layers"]["mlp"]["dense_in"]["kernel"][1] = 3e38
        return params

    lines = list(replay.replay(dumped(tmp_path, change, model__attention="spatiotemporal").parent))
    assert sum("BROKEN: encoder/layers[1]/mlp/dense_in" in line for line in lines) == 8


@pytest.mark.slow
def test_step_of_masked_pretraining_is_repeated(tmp_path):
    fields = {"pretrain__mask_ratio": 0.75, "pretrain__decoder_layers": 1, "checkpoint__best_metric": "loss"}
    fields |= {"optimizer__learning_rate": 1e30, "optimizer__warmup_epochs": 0.0}
    *lines, _, last = replay.replay(dumped(tmp_path, lambda params: params, heads={}, **fields))
    assert len(lines) == 8
    assert "clip 7, padding, alone: loss 0" not in lines[7], "alone, every clip counts"
    assert last.startswith("Step 5 is skipped again: loss ")


@pytest.mark.slow
def test_refused_update_repeats_and_no_clip_is_blamed(tmp_path):
    folder = dumped(tmp_path, lambda params: params, optimizer__learning_rate=1e30, optimizer__warmup_epochs=0.0)
    *_, verdict, last = replay.replay(folder)
    assert verdict.startswith("No clip goes wrong alone; the largest gradient norm")
    assert last.startswith("Step 5 is skipped again: loss 2.")


def test_incomplete_dump_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"step\.json"):
        next(replay.replay(tmp_path))
    folder = dumped(tmp_path, lambda params: params, processes=2)
    (folder / "batch_1.npz").unlink()
    with pytest.raises(ValueError, match="have 4 clips of 8; copy those of all hosts"):
        next(replay.replay(folder))
    for name, content in (("batch_0.npz", b""), ("batch_0.npz", b"PK"), ("step.json", b"[]"), ("step.json", b"{}")):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{folder} cannot be replayed"):
            next(replay.replay(folder))
