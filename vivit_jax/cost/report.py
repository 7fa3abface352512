"""The cost of one experiment: parameters by part, multiply-adds, memory."""

import math
from collections.abc import Callable
from typing import Any

import jax

from vivit_jax.config.experiment import Experiment
from vivit_jax.cost.counts import abstract_batch, forward_count, parameters_by_part, train_count
from vivit_jax.models import ViViTConfig
from vivit_jax.models.flops import matrix_products
from vivit_jax.train_step import TrainProgram, normalise, remat
from vivit_jax.utils.tables import Table

HEADER = ("quantity", "value", "unit", "remark")
Log = Callable[[str], None]


def tables_of(experiment: Experiment, *, compiled: bool = True, log: Log = lambda _: None) -> list[Table]:
    """Returns the tables `parameters`, `multiply_adds` and `memory` of an experiment. Nothing is allocated.

    `remat="auto"` is counted as what it takes first, no recomputation: one clip fits. With `compiled` it is compiled
    for this machine's default device, for the memory of activations. `log` receives a line before that.
    """
    program = experiment.train_program(experiment.dataset_heads(), mesh=None)
    training = remat.apply(program, remat.choices(program.model.config, jax.default_backend())[0])
    config = training.model.config
    heads = ", ".join(f"{name or 'classes'} {classes}" for name, classes in config.heads) or "masked pretraining"
    video, grid = (" x ".join(map(str, shape)) for shape in ((config.num_frames, *config.image_shape), config.grid))
    title = f"{config.name} {config.attention}, {video}, {grid} tokens, {heads}"
    parts = parameters_by_part(program.state.params)
    parts["all"] = sum(parts.values())
    rows = tuple((part, f"{count:,}", "parameters", "") for part, count in parts.items())
    operations = _multiply_adds(experiment, config)
    if compiled:
        log("compiling the forward pass and the training step of one clip, for their memory")
    memory = _memory(experiment, program, training, compiled)
    return [Table(f"Parameters: {title}", HEADER, rows), operations, memory]


def _multiply_adds(experiment: Experiment, config: ViViTConfig) -> Table:
    products, forward = matrix_products(config), forward_count(config, experiment.pretrain)
    clip, step = train_count(experiment, config)
    matrix = sum(products.values())
    remarks = [f"{clip / forward:.2f} times the forward pass"]
    if config.remat != "none":
        remarks.append(f"includes what remat={config.remat!r} recomputes")
    if config.dropout_rate or config.attention_dropout_rate or config.stochastic_depth_rate:
        remarks.append("includes the random bits of dropout and stochastic depth")
    if config.attention_backend != "xla":
        remarks.append("attention as the xla backend computes it, without what the others recompute")
    by_kind = [
        *((f"forward, matrix products: {part}", count, "") for part, count in products.items()),
        ("forward, matrix products", matrix, "closed formula"),
        ("forward, element by element", forward - matrix, "softmax, LayerNorm, GELU, biases ..."),
    ]
    quantities = [
        *([] if experiment.pretraining else by_kind),  # the closed formula is that of all tokens
        ("forward, one clip", forward, "the compiler's count (flops / 2) in float32, as in the paper's tables"),
        ("training, one clip", clip, "; ".join(remarks)),
        ("training, optimizer and metrics", step, "once a step, on each device that holds all parameters"),
        (f"training, a step of {experiment.batch_size} clips", experiment.batch_size * clip + step, ""),
    ]
    rows = tuple((name, f"{count / 1e9:,.3f}", "G multiply-adds", remark) for name, count, remark in quantities)
    return Table("Multiply-adds", HEADER, rows)


def _memory(experiment: Experiment, program: TrainProgram, training: TrainProgram, compiled: bool) -> Table:
    config = training.model.config
    parameters, optimizer_state = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (program.state.params, program.state.opt_state)
    )
    quantities = [
        ("parameters", parameters, config.param_dtype),
        ("gradients", parameters, config.param_dtype),
        ("optimizer state", optimizer_state, experiment.optimizer.name),
        ("pixels, one clip", math.prod(config.video_shape), "uint8"),
    ]
    if compiled:
        inference, step = compiled_temporaries(program.model, training)
        device = f"by the compiler, {jax.default_backend()}"
        settings = f"dtype={config.dtype!r}, remat={config.remat!r}, attention_backend={config.attention_backend!r}"
        quantities += [
            ("temporaries of inference, one clip", inference, device),
            ("temporaries of a training step, one clip", step, f"{device}; gradients included; {settings}"),
            ("inference, one clip", parameters + inference, "parameters and temporaries"),
            ("training, one clip", parameters + optimizer_state + step, "parameters, optimizer state, temporaries"),
        ]
    rows = tuple((name, f"{size / 2**20:,.1f}", "MiB", remark) for name, size, remark in quantities)
    note = "Per device. Temporaries (activations) grow with its clips. For TPUs: python -m vivit_jax.compile."
    return Table("Memory", HEADER, rows, (note,))


def compiled_temporaries(model: Any, training: TrainProgram) -> tuple[int, int]:
    """Compiles for the default device; returns the bytes of temporaries for one clip of (inference, training)."""
    state, batch = training.state, abstract_batch(model.config, 1)

    def forward(params: Any, video: jax.Array) -> Any:
        return model.apply({"params": params}, normalise(video), rngs={"dropout": jax.random.key(0)})

    lowered = [jax.jit(forward).lower(state.params, batch["video"]), training.step.lower(state, batch)]
    return tuple(computation.compile().memory_analysis().temp_size_in_bytes for computation in lowered)
