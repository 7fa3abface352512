"""The train state, the two pure steps, train and eval, and the train step jitted for a mesh.

The steps do not depend on the model (`apply_fn`), the data or the number of devices: under `jax.jit` over a mesh the
sums below are sums over the global batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.augment import AugmentConfig, augment_pixels, mix_clips, step_keys, swap_pairs
from vivit_jax.models.dense import compiler_options
from vivit_jax.optim import Optimizer
from vivit_jax.train_step.gradients import loss_and_gradients, select_trained
from vivit_jax.train_step.guard import GuardConfig, GuardState, check_step
from vivit_jax.train_step.losses import LossConfig, example_losses, masked_mean, one_hot_targets, top1_correct

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
SINGLE_HEAD = "label"  # name of the head of a data set with only one


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step; a checkpoint holds all of it."""

    step: jax.Array  # int32 scalar, steps done, including skipped ones
    params: Any  # float32
    opt_state: optax.OptState
    ema: Any  # exponential moving average of `params`, or None
    guard: GuardState

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation | Optimizer, ema_decay: float = 0.0) -> Self:
        """Returns the state before the first step; the EMA starts at the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            # A copy: the train step donates all buffers, and each can be donated only once.
            ema=jax.tree.map(jnp.copy, params) if ema_decay else None,
            guard=GuardState.create(optax.tree.norm(params)),
        )


def normalise(video: jax.Array) -> jax.Array:
    """Maps pixels in [0, 255], uint8 or float, any shape, to float32 in [-1, 1]: x / 127.5 - 1."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def as_heads(logits: Any) -> dict[str, jax.Array]:
    """Returns logits as {head: [B, C]}; a model with one head returns an array, with several a mapping."""
    return dict(logits) if isinstance(logits, Mapping) else {SINGLE_HEAD: logits}


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """Returns the random key of a step. It depends on seed and step alone, so a resumed run draws the same."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_train_step(
    apply_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation | Optimizer,
    schedule: optax.Schedule,
    *,
    seed: int = 0,
    label_smoothing: float = 0.0,
    loss: LossConfig | None = None,
    augment: AugmentConfig | None = None,
    guard: GuardConfig | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    sam_rho: float = 0.0,
    norms_by_part: bool = False,
    pretraining: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the train step: a pure function `(state, batch) -> (state, metrics)`, ready for `jax.jit`.

    Args:
      apply_fn: `(variables, video [B, T, H, W, 3] in [-1, 1], train=, rngs=) -> logits [B, C] or {head: [B, C]}`.
      optimizer: from `optim.make_optimizer`, or any optax transformation, which trains all parameters.
      schedule: step -> learning rate, for the metrics only (the optimizer has its own).
      label_smoothing: e in [0, 1), training loss only.
      loss, augment, guard: None: the defaults of their configs.
      accumulate_steps: microbatches that the batch is split into, to save memory. Up to rounding the step is that of
        the whole batch, except that each microbatch has its own dropout and stochastic depth.
      ema_decay, sam_rho: see `update_ema` and `gradients.sam_perturb`; 0: off.
      norms_by_part: log norms also for each top-level module of the model.
      pretraining: `apply_fn` returns {"loss": [B], ...} instead of logits; labels are not used.

    Returns:
      The train step. `batch`: `video` uint8 [B, T, H, W, 3], `label` {head: int32 [B], or with the sigmoid loss float
      [B, C], 1 for each label of a clip}, `mask` [B]. Metrics, all float32 scalars:

      * `loss`, the weighted sum over the heads, and top-1 `accuracy`; with several heads `loss/HEAD` (unweighted) and
        `accuracy/HEAD`. The highest logit must belong to a label, with mixup and cutmix to that with the larger share.
      * `learning_rate`, and `learning_rate/head` where it differs. Skipped steps do not advance the schedule.
      * `gradient_norm` (before clipping, trained parameters), `parameter_norm`, `update_norm`; with `norms_by_part`
        also `gradient_norm/MODULE` and so on.
      * `skipped`, 1 if the guard skipped this step, else 0, and `skipped_in_a_row`. A skipped step's loss and norms are
        reported as they would have been, NaN or not; `update_norm` is 0 where loss or gradient are not finite.

      Its first call raises ValueError where the state has no EMA although `ema_decay` is above 0, or the reverse; where
      heads and labels differ; for several labels per clip under softmax; and if `accumulate_steps` does not divide B.
    """
    augment, loss, guard = augment or AugmentConfig(), loss or LossConfig(), guard or GuardConfig()
    head_rate = getattr(optimizer, "head_learning_rate", 1.0)
    update = optax.with_extra_args_support(optimizer).update

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if (state.ema is None) == bool(ema_decay):
            raise ValueError(f"ema_decay={ema_decay} in the step, but not in the state: TrainState.create takes it too")
        key, num_clips = step_key(seed, state.step), jnp.sum(batch["mask"])
        trained = trained_leaves(optimizer, state.params)

        def loss_fn(params: Any, rows: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            video = rows["video"] if augment.mixes else normalise(rows["video"])
            out = apply_fn({"params": params}, video, train=True, rngs={"dropout": key})
            if pretraining:
                return masked_mean(out["loss"], rows["mask"], num_clips), {}
            return batch_loss(as_heads(out), rows, num_clips, loss, label_smoothing)

        # Augmentation, loss and gradients, in microbatches.
        rows = augment_batch(key, batch, augment)
        value, metrics, gradients = loss_and_gradients(
            loss_fn, state.params, trained, rows, key, accumulate_steps=accumulate_steps, sam_rho=sam_rho
        )

        # Update, unless the guard skips the step.
        updates, opt_state = update(gradients, state.opt_state, state.params, value=value)
        # Untrained leaves and skipped steps keep the old values: -0.0 + 0 is 0.0, and an EMA of equal numbers rounds.
        proposed = select_trained(trained, optax.apply_updates(state.params, updates), state.params)
        trees = {"gradient_norm": gradients, "update_norm": updates, "parameter_norm": proposed}
        of_parts = {f"{name}/{part}": x for name, tree in trees.items() if norms_by_part for part, x in tree.items()}
        norms = {name: optax.tree.norm(tree) for name, tree in (trees | of_parts).items()}
        accept, guard_state = check_step(guard, state.guard, value, *(norms[name] for name in trees))
        # Elements are selected, to the bit, whatever NaN the new ones hold, instead of branching: XLA fuses that with
        # the update, on any mesh, with donated buffers.
        params, ema = optax.tree.where(accept, proposed, state.params), state.ema
        if ema_decay:
            newer = update_ema(ema, params, ema_decay, state.guard.accepted)
            ema = select_trained(trained, optax.tree.where(accept, newer, ema), ema)

        # Metrics.
        rate = jnp.asarray(schedule(state.step - state.guard.skipped), jnp.float32)
        metrics |= {"loss": value, "learning_rate": rate}
        metrics |= {"skipped": 1.0 - accept, "skipped_in_a_row": guard_state.consecutive_skips}
        metrics |= {"learning_rate/head": head_rate * rate} if head_rate != 1 else {}
        updated = jnp.isfinite(value) & jnp.isfinite(norms["gradient_norm"])
        for name, norm in norms.items():
            metrics[name] = jnp.where(updated, norm, 0.0) if name.startswith("update_norm") else norm
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=optax.tree.where(accept, opt_state, state.opt_state),
            ema=ema,
            guard=guard_state,
        ), {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return train_step


def trained_leaves(optimizer: optax.GradientTransformation | Optimizer, params: Any) -> Any:
    """Returns a tree of bools like `params`: which of them the optimizer trains."""
    return optimizer.trained(params) if isinstance(optimizer, Optimizer) else jax.tree.map(lambda _: True, params)


def update_ema(ema: Any, params: Any, decay: float, updates: jax.Array) -> Any:
    """Returns the exponential moving average after one step: d ema + (1 - d) params.

    It starts at the initial parameters; so that they fade quickly, d = min(decay, (1 + n) / (10 + n)) after n
    `updates`: the warm-up of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    decay = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    return optax.incremental_update(params, ema, 1.0 - decay)


def map_views(fn: Callable[[jax.Array], Any], video: jax.Array, clips: int = 1) -> Any:
    """Applies `fn` to each view of `video`, uint8 [B, V, T, H, W, 3]; returns its outputs on a leading axis of V.

    A loop over groups of views: memory does not grow with V, and yet no device computes a lone clip where B is small.
    A mesh may split B. `fn` maps clips, float32 [N, T, H, W, 3] in [-1, 1], to arrays [N, ...], row by row; `clips` is
    what a device should have at once: a group has the smallest divisor of V that gives so many views, else all.
    """
    batch, views = video.shape[:2]
    enough = clips * sharding.num_shards("batch")
    group = next((n for n in range(1, views) if views % n == 0 and n * batch >= enough), views)

    def apply(first: jax.Array) -> Any:
        of_group = jax.lax.dynamic_slice_in_dim(video, first, group, axis=1)  # [B, group, T, H, W, 3]
        # B is the major axis of the merged one, so that each device keeps its videos.
        outputs = fn(normalise(of_group.reshape(batch * group, *video.shape[2:])))
        return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, group, *x.shape[1:]), 1, 0), outputs)

    outputs = jax.lax.map(apply, jnp.arange(0, views, group))  # [V / group, group, B, ...]
    return jax.tree.map(lambda x: x.reshape(views, *x.shape[2:]), outputs)


def make_eval_step(apply_fn: Callable[..., Any], clips: int = 1) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Makes the multi-view evaluation step (section 4.1): `(params, batch) -> {head: float32 [B, C]}`.

    The logits are averages over the V views of `batch["video"]`, uint8 [B, V, T, H, W, 3]. `clips`: see `map_views`.
    """

    def eval_step(params: Any, batch: Batch) -> dict[str, jax.Array]:
        def apply(views: jax.Array) -> dict[str, jax.Array]:
            return as_heads(apply_fn({"params": params}, views, train=False))

        return {head: jnp.mean(logits, axis=0) for head, logits in map_views(apply, batch["video"], clips).items()}

    return eval_step


def augment_batch(key: jax.Array, batch: Batch, augment: AugmentConfig) -> Batch:
    """Returns the augmented batch: `video` in [0, 255], or with mixup and cutmix in [-1, 1]; then also `partner`, the
    labels of the clip mixed in, and `share` [B], the share of the clip itself."""
    rows = {name: batch[name] for name in ("video", "label", "mask")}
    if augment.enabled:
        pixels_key, mixing_key = step_keys(key)
        rows["video"] = augment_pixels(pixels_key, rows["video"], augment)
        if augment.mixes:
            rows["video"], rows["share"] = mix_clips(mixing_key, normalise(rows["video"]), rows["mask"], augment)
            rows["partner"] = jax.tree.map(swap_pairs, rows["label"])
    return rows


def batch_loss(
    logits: Metrics, rows: Batch, num_clips: jax.Array, config: LossConfig, smoothing: float
) -> tuple[jax.Array, Metrics]:
    """Returns what some rows contribute to loss and metrics of a batch whose mask sums up to `num_clips`."""
    labels, mask = rows["label"], rows["mask"]
    if set(logits) != set(labels):
        differ = f"the model has the heads {sorted(logits)}, the data set the labels {sorted(labels)}"
        raise ValueError(f"{differ}; set model.num_classes from the data set")
    weights = config.weights(labels)
    losses, accuracies = {}, {}
    for head, label in labels.items():
        if config.name == "softmax" and label.ndim > 1:
            raise ValueError(f"the head {head!r} has several labels per clip; set loss.name='sigmoid'")
        targets, dominant_label = one_hot_targets(logits[head], label, smoothing), label
        if "share" in rows:
            share, partner = rows["share"], rows["partner"][head]
            partner_targets = one_hot_targets(logits[head], partner, smoothing)
            targets = share[:, None] * targets + (1 - share[:, None]) * partner_targets
            dominant_label = jnp.where(share.reshape(-1, *[1] * (label.ndim - 1)) >= 0.5, label, partner)
        losses[head] = masked_mean(example_losses(logits[head], targets, config.name), mask, num_clips)
        accuracies[head] = masked_mean(top1_correct(logits[head], dominant_label), mask, num_clips)
    value = sum(weights[head] * losses[head] for head in losses)
    if len(losses) == 1:
        return value, {"accuracy": next(iter(accuracies.values()))}
    return value, {f"loss/{h}": v for h, v in losses.items()} | {f"accuracy/{h}": v for h, v in accuracies.items()}


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The jitted train step of a model, and the state that it updates. Nothing is allocated or compiled yet.

    The mesh may be over devices that are not attached (`jax.experimental.topologies`): `state` and `step.lower` work
    there too. Optimizer and EMA decay are those of `make_train_step`.
    """

    model: Any  # Flax module; `model.config.video_shape` is the shape of a clip
    optimizer: optax.GradientTransformation | Optimizer
    ema_decay: float
    state: TrainState  # of `jax.ShapeDtypeStruct`, with shardings where there is a mesh
    step: Any  # (state, batch) -> (state, metrics), jitted; `state` is donated
    make_step: Callable[[Any], Any] | None = None  # model -> its `step`

    def with_model(self, model: Any) -> Self:
        """Returns the program of a model that has the same parameters, but computes in another way."""
        return dataclasses.replace(self, model=model, step=self.make_step(model))

    def create(self, key: jax.Array) -> TrainState:
        """Makes the state before the first step, with random parameters; to be traced."""
        params = self.model.init(key, jnp.zeros((1, *self.model.config.video_shape)))["params"]
        return TrainState.create(params, self.optimizer, self.ema_decay)

    def init_state(self, seed: int) -> TrainState:
        """Returns the state before the first step, with random parameters. The values do not depend on the mesh."""
        return jax.jit(self.create, out_shardings=self._shardings())(jax.random.key(seed))

    def state_from_params(self, params: Any) -> TrainState:
        """Returns the state before the first step, with these parameters (arrays on the host or on devices)."""
        shardings = self._shardings()
        create = jax.jit(lambda p: TrainState.create(p, self.optimizer, self.ema_decay), out_shardings=shardings)
        return create(jax.device_put(params, shardings.params))

    def _shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def build_train_program(
    model: Any,
    optimizer: optax.GradientTransformation | Optimizer,
    schedule: optax.Schedule,
    mesh: Mesh | None = None,
    *,
    ema_decay: float = 0.0,
    **options: Any,
) -> TrainProgram:
    """Builds a `TrainProgram` with the options of `make_train_step`; `mesh` None: one device, no shardings."""
    program = TrainProgram(model, optimizer, ema_decay, state=None, step=None)
    state = jax.eval_shape(lambda seed: program.create(jax.random.key(seed)), 0)
    out_shardings = None
    if mesh is not None:
        shardings = sharding.state_sharding(mesh, state)
        state = sharding.abstract_like(state, shardings)
        out_shardings = (shardings, sharding.replicated(mesh))

    def make_step(model: Any) -> Any:
        step = make_train_step(model.apply, optimizer, schedule, ema_decay=ema_decay, **options)
        xla_options = compiler_options(model.config, mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=xla_options)

    return dataclasses.replace(program, state=state, make_step=make_step, step=make_step(model))
