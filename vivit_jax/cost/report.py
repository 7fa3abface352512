"""The cost of one experiment: parameters by part, multiply-adds, memory of training and inference."""

from __future__ import annotations

from collections.abc import Callable

import optax

from vivit_jax import optim
from vivit_jax.config.experiment import Experiment
from vivit_jax.cost.counts import forward_count, parameters_by_part, train_count
from vivit_jax.cost.memory import compiled_bytes, memory_of
from vivit_jax.cost.render import Table
from vivit_jax.data import build, catalog
from vivit_jax.models.flops import matrix_products

HEADER = ("quantity", "value", "unit", "remark")


def tables_of(
    experiment: Experiment, *, compiled: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Table]:
    """The cost of an experiment, nothing allocated.

    Args:
      experiment: its model, data set (for the classes), optimizer and batch size count.
      compiled: also compile for this machine's default device and print the compiler's temporaries.
      say: called with a line of progress before each part.

    Returns:
      Tables `parameters`, `multiply_adds` and `memory`.

    Raises:
      ValueError: a data set that the catalog does not know, and no records of it.
      ConfigError: a model that does not fit together.
    """
    data = experiment.data
    config = experiment.model_config(catalog.of_records(data.name, build.records_folder(data.name, data.dir)).heads)
    # The shapes of the state do not depend on the schedule, which only the data can complete.
    optimizer = optim.make_optimizer(experiment.optimizer, optax.constant_schedule(experiment.optimizer.learning_rate))
    n_t, n_h, n_w = config.grid
    heads = ", ".join(f"{name or 'classes'} {classes}" for name, classes in config.heads)
    what = (
        f"{config.name} {config.attention}, {config.num_frames} x {' x '.join(map(str, config.image_shape))}, "
        f"{n_t} x {n_h} x {n_w} tokens, {heads}"
    )

    say(f"parameters of {what}")
    parts = parameters_by_part(config)
    rows = [_row(part, count, "") for part, count in parts.items()]
    found = [Table("parameters", f"Parameters: {what}", HEADER, (*rows, _row("all", sum(parts.values()), "")))]

    say("multiply-adds of the forward pass and of a training step (traced, not compiled)")
    products, forward = matrix_products(config), forward_count(config)
    clip, step = train_count(config, optimizer, label_smoothing=experiment.label_smoothing)
    rates = (config.dropout_rate, config.attention_dropout_rate, config.stochastic_depth_rate)
    noise = "; the random bits of dropout and stochastic depth count too" if any(rates) else ""
    again = (
        f"; remat={config.remat!r} does again what the backward pass wants of the forward"
        if config.remat != "none"
        else ""
    )
    tiled = "; the tiled backend's own recomputation is left out" if config.attention_backend == "tiled" else ""
    rows = [_giga(f"forward, matrix products: {part}", count) for part, count in products.items()]
    rows += [
        _giga("forward, matrix products", sum(products.values()), "closed formula"),
        _giga("forward, element by element", forward - sum(products.values()), "softmax, LayerNorm, GELU, biases ..."),
        _giga("forward, one clip", forward, "the compiler's count (flops / 2) in float32, as in the paper's tables"),
        _giga("training, one clip", clip, f"{clip / forward:.2f} of the forward pass{again}{noise}{tiled}"),
        _giga("training, optimizer and metrics", step, "once a step, on each device that holds all parameters"),
        _giga(f"training, a step of {experiment.batch_size} clips", experiment.batch_size * clip + step),
    ]
    found.append(Table("multiply_adds", "Multiply-adds", HEADER, tuple(rows)))

    say("memory")
    memory = memory_of(config, optimizer)
    clips, views = experiment.batch_size, experiment.evaluation.batch_size
    rows = [
        _mebi("parameters", memory.parameters, config.param_dtype),
        _mebi("gradients", memory.gradients, config.param_dtype),
        _mebi("optimizer state", memory.optimizer, experiment.optimizer.name),
        _mebi("copies of parameters kept for the backward pass", memory.kept_once, f"dtype={config.dtype!r}"),
        _mebi(
            "activations kept, one clip",
            memory.kept_per_clip,
            f"the residuals of jax.vjp, each array once; dtype={config.dtype!r}, remat={config.remat!r}, "
            f"attention_backend={config.attention_backend!r}",
        ),
        _mebi("recomputed, one clip", memory.recomputed_per_clip, "one layer at a time; nothing without remat"),
        _mebi("pixels, one clip", memory.clip, "uint8"),
        _mebi("training, 1 clip on a device", memory.training(1), "all of the state on it"),
        _mebi(f"training, {clips} clips on a device", memory.training(clips), "the whole batch on one"),
        _mebi(
            "inference, activations, one clip",
            memory.inference_per_clip,
            "most bytes alive at once, in the traced program's order, before the compiler fuses",
        ),
        _mebi("inference, 1 clip on a device", memory.inference(1), "parameters, pixels, activations"),
        _mebi(f"inference, {views} videos on a device", memory.inference(views), "views go one after another"),
    ]
    if compiled:
        say("compiling the forward pass and the training step of one clip")
        inference, training = compiled_bytes(config, optimizer)
        by = "the compiler's own, on this machine's default device"
        rows += [
            _mebi("compiled inference, temporaries, one clip", inference, by),
            _mebi("compiled training step, temporaries, one clip", training, f"{by}; gradients included"),
        ]
    note = (
        "Before the compiler, which fuses (less) and copies (more); what the backward pass needs for the moment is not "
        "counted. The state stands on every device that has a whole copy; activations and pixels divide over the "
        "devices with the batch."
    )
    found.append(Table("memory", "Memory", HEADER, tuple(rows), (note,)))
    return found


def _row(quantity: str, count: int, remark: str) -> tuple[str, ...]:
    return (quantity, f"{count:,}", "parameters", remark)


def _giga(quantity: str, count: float, remark: str = "") -> tuple[str, ...]:
    return (quantity, f"{count / 1e9:,.3f}", "G multiply-adds", remark)


def _mebi(quantity: str, size: int, remark: str = "") -> tuple[str, ...]:
    return (quantity, f"{size / 2**20:,.1f}", "MiB", remark)
