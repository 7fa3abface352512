"""What a config says of the optimizer, checked."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

OPTIMIZERS = ("sgd", "adamw", "lamb", "lion")
SCHEDULES = ("cosine", "linear", "constant", "step", "rsqrt")
UNITS = ("steps", "epochs", "examples")

# Biases, norms, position embeddings and class tokens are not decayed: every other leaf is called `kernel`.
KERNELS = r"(^|/)kernel$"

_B2 = {"lion": 0.99}  # arXiv:2302.06675, section 4; of the others 0.999


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a run. The defaults are the paper's recipe (appendix).

    Patterns are regular expressions, searched in paths such as 'encoder/layers/mlp/dense_in/kernel'.

    Attributes:
      name: 'sgd' (with momentum, no Nesterov), 'adamw' (arXiv:1711.05101), 'lamb' (arXiv:1904.00962) or 'lion'
        (arXiv:2302.06675).
      learning_rate: base learning rate, reached at the end of the warm-up; > 0.
      schedule: of the steps after the warm-up: 'cosine', 'linear' (both to `end_learning_rate`), 'constant', 'step'
        (times `step_decay_factor` at each of `schedule_steps`) or 'rsqrt' (see `rsqrt_timescale`).
      warmup_epochs: epochs of linear warm-up from 0; at least 0, less than the run's.
      warmup_steps, warmup_examples: the same in optimizer steps or in clips; where one of them is given, it wins.
      end_learning_rate: the learning rate at the last step, at least 0; of 'cosine' and 'linear'.
      schedule_steps: where 'step' changes the learning rate, counted from the start of the run, ascending.
      step_decay_factor: what it is multiplied by there, in (0, 1).
      rsqrt_timescale: t of 'rsqrt', > 0: s steps after the warm-up the learning rate is base / sqrt(1 + s / t)
        (arXiv:2106.04560; big_vision's `create_learning_rate_schedule`). None: 10,000 steps.
      schedule_unit: in what `schedule_steps` and `rsqrt_timescale` are given: 'steps', 'epochs' or 'examples'.
      momentum: of SGD, in [0, 1).
      b1, b2, eps: the others' moments, in [0, 1), and their epsilon, > 0. b2=None: as published, 0.999, and 0.99 of
        Lion, which has no epsilon.
      weight_decay: decoupled, times the learning rate, on what `decay_pattern` names; at least 0 (published: 0).
      decay_pattern: the parameters that are decayed; by default kernels alone: no biases, norms, position embeddings
        and class tokens.
      clip_norm: gradients are scaled so that the global norm of what is trained is at most this; 0 turns it off.
      layer_decay: layer-wise learning-rate decay, in (0, 1]; `optim.layers` says how. 1 turns it off.
      head_learning_rate: the learning rate of the heads in multiples of the body's, > 0.
      frozen: patterns of the parameters that are not trained: no update, no decay, no optimizer state. One may be
        given as a string.
      accumulate_steps: parts that a batch is taken in, one after another, for memory; the gradient is that of the
        batch. At least 1, and it must divide the batch.
      ema_decay: d in [0, 1) of the exponential moving average of the parameters; 0 turns it off.
      sam_rho: radius of sharpness-aware minimisation (arXiv:2010.01412), at least 0; 0 turns it off.

    Raises:
      ValueError: a field out of its range, or one that the chosen schedule does not look at.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 2.5
    warmup_steps: int | None = None
    warmup_examples: int | None = None
    end_learning_rate: float = 0.0
    schedule_steps: tuple[float, ...] = ()
    step_decay_factor: float = 0.1
    rsqrt_timescale: float | None = None
    schedule_unit: str = "steps"
    momentum: float = 0.9
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_pattern: str = KERNELS
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    head_learning_rate: float = 1.0
    frozen: tuple[str, ...] = ()
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    sam_rho: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule_steps", tuple(self.schedule_steps))
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))
        self._check_numbers()
        self._check_schedule()
        for field, patterns in (("decay_pattern", (self.decay_pattern,)), ("frozen", self.frozen)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"optimizer.{field}={pattern!r} is not a regular expression: {error}") from error

    @property
    def second_moment(self) -> float:
        """`b2`, as published where it is not given."""
        return _B2.get(self.name, 0.999) if self.b2 is None else self.b2

    def _check_numbers(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name={self.name!r} is not known; choose one of {', '.join(OPTIMIZERS)}")
        for field in ("learning_rate", "head_learning_rate", "eps", "rsqrt_timescale"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"optimizer.{field}={value} must be greater than 0, and finite")
        for field in (
            *("warmup_epochs", "warmup_steps", "warmup_examples", "end_learning_rate", "weight_decay", "clip_norm"),
            "sam_rho",
        ):
            value = getattr(self, field)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"optimizer.{field}={value} must be at least 0, and finite")
        for field in ("momentum", "b1", "b2", "ema_decay"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"optimizer.{field}={value} must lie in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay} must lie in (0, 1]; 1 turns it off")
        if self.accumulate_steps < 1 or self.accumulate_steps != int(self.accumulate_steps):
            raise ValueError(f"optimizer.accumulate_steps={self.accumulate_steps} must be a whole number, at least 1")

    def _check_schedule(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule={self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
        if self.schedule_unit not in UNITS:
            raise ValueError(f"optimizer.schedule_unit={self.schedule_unit!r} is not known; choose {', '.join(UNITS)}")
        if self.warmup_steps is not None and self.warmup_examples is not None:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} and warmup_examples={self.warmup_examples} both say how "
                "long the warm-up is; give one"
            )
        for field, off, schedules in (
            ("end_learning_rate", 0.0, ("cosine", "linear")),
            ("schedule_steps", (), ("step",)),
            ("rsqrt_timescale", None, ("rsqrt",)),
        ):
            if self.schedule not in schedules and getattr(self, field) != off:
                raise ValueError(
                    f"optimizer.{field}={getattr(self, field)} means nothing to schedule={self.schedule!r}, only to "
                    f"{' and '.join(schedules)}; leave it at {off}"
                )
        if self.schedule == "step":
            places = self.schedule_steps
            if not places or places[0] <= 0 or any(a >= b for a, b in itertools.pairwise(places)):
                raise ValueError(
                    f"optimizer.schedule_steps={places} must say where the learning rate changes, ascending, each "
                    f"greater than 0, in {self.schedule_unit}"
                )
            if not 0 < self.step_decay_factor < 1:
                raise ValueError(f"optimizer.step_decay_factor={self.step_decay_factor} must lie in (0, 1)")
