"""Config of the optimizer and the learning-rate schedule."""

import dataclasses
import itertools
import re

from vivit_jax.utils.checks import at_least, one_of, whole, within

OPTIMIZERS = ("sgd", "adamw", "lamb", "lion")
SCHEDULES = ("cosine", "linear", "constant", "step", "rsqrt")
UNITS = ("steps", "epochs", "examples")

# Matches every parameter but biases, LayerNorm scales, position embeddings and class tokens.
KERNELS = r"(^|/)kernel$"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule of a run. The defaults are the paper's recipe (appendix).

    Patterns are regular expressions, searched in paths such as 'encoder/layers/mlp/dense_in/kernel'.

    Attributes:
      schedule: after the warm-up: 'cosine', 'linear' (both to `end_learning_rate`), 'constant', 'step' (times
        `step_decay_factor` at each of `schedule_steps`) or 'rsqrt' (see `rsqrt_timescale`).
      warmup_steps, warmup_examples: the warm-up in optimizer steps or in clips; replaces `warmup_epochs`.
      schedule_steps, step_decay_factor: when 'step' changes the learning rate, from the start of the run, ascending,
        and by what factor in (0, 1).
      rsqrt_timescale: t > 0 of 'rsqrt': the learning rate s steps after the warm-up is base / sqrt(1 + s / t)
        (arXiv:2106.04560; big_vision's `create_learning_rate_schedule`). None: 10,000 steps.
      b1, b2, eps: of all optimizers but SGD: decay of the moments, in [0, 1), and epsilon, > 0. b2=None: as published,
        0.999, or 0.99 for Lion, which has no epsilon.
      weight_decay, decay_pattern: decoupled weight decay, times the learning rate, of the parameters with this pattern.
      layer_decay: layer-wise learning-rate decay, in (0, 1], see `optim.learning_rate_factors`; 1 turns it off.
      accumulate_steps: microbatches per batch, processed one after another to save memory; must divide the batch size.
    """

    name: str = "sgd"  # 'sgd', 'adamw' (arXiv:1711.05101), 'lamb' (arXiv:1904.00962) or 'lion' (arXiv:2302.06675)
    learning_rate: float = 0.1  # at the end of the warm-up; > 0
    schedule: str = "cosine"
    warmup_epochs: float = 2.5  # epochs of linear warm-up from 0, less than the run has
    warmup_steps: int | None = None
    warmup_examples: int | None = None
    end_learning_rate: float = 0.0  # at the last step of 'cosine' and 'linear'
    schedule_steps: tuple[float, ...] = ()
    step_decay_factor: float = 0.1
    rsqrt_timescale: float | None = None
    schedule_unit: str = "steps"  # of `schedule_steps` and `rsqrt_timescale`: 'steps', 'epochs' or 'examples'
    momentum: float = 0.9  # of SGD, in [0, 1); no Nesterov
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_pattern: str = KERNELS
    clip_norm: float = 1.0  # upper limit of the global norm of the trained parameters' gradient; 0 turns clipping off
    layer_decay: float = 1.0
    head_learning_rate: float = 1.0  # learning rate of the heads in multiples of the schedule's, > 0
    frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained: no update, decay or optimizer state
    accumulate_steps: int = 1
    ema_decay: float = 0.0  # d in [0, 1) of the exponential moving average of the parameters; 0 turns it off
    sam_rho: float = 0.0  # radius of sharpness-aware minimisation (arXiv:2010.01412); 0 turns it off

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule_steps", tuple(self.schedule_steps))
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))
        one_of("optimizer", self, name=OPTIMIZERS, schedule=SCHEDULES, schedule_unit=UNITS)
        within("optimizer", self, "(0, inf)", "learning_rate", "head_learning_rate", "eps", "rsqrt_timescale")
        not_negative = ("warmup_epochs", "warmup_steps", "warmup_examples", "end_learning_rate")
        within("optimizer", self, "[0, inf)", *not_negative, "weight_decay", "clip_norm", "sam_rho")
        within("optimizer", self, "[0, 1)", "momentum", "b1", "b2", "ema_decay")
        within("optimizer", self, "(0, 1]", "layer_decay", hint="1 turns it off")
        at_least("optimizer", self, accumulate_steps=1)
        whole("optimizer", self, "accumulate_steps")
        self._check_schedule()
        for field, patterns in (("decay_pattern", (self.decay_pattern,)), ("frozen", self.frozen)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"optimizer.{field}={pattern!r} is not a regular expression: {error}") from error

    def _check_schedule(self) -> None:
        if self.warmup_steps is not None and self.warmup_examples is not None:
            both = f"warmup_steps={self.warmup_steps} and warmup_examples={self.warmup_examples}"
            raise ValueError(f"optimizer.{both} both set the length of the warm-up; give one")
        for field, default, schedules in (
            ("end_learning_rate", 0.0, ("cosine", "linear")),
            ("schedule_steps", (), ("step",)),
            ("rsqrt_timescale", None, ("rsqrt",)),
        ):
            if self.schedule not in schedules and getattr(self, field) != default:
                unused = f"is not used by schedule={self.schedule!r}, only by {' and '.join(schedules)}"
                raise ValueError(f"optimizer.{field}={getattr(self, field)} {unused}; leave it at {default}")
        if self.schedule != "step":
            return
        within("optimizer", self, "(0, 1)", "step_decay_factor")
        steps = self.schedule_steps
        if not (steps and steps[0] > 0 and all(a < b for a, b in itertools.pairwise(steps))):
            rule = f"the {self.schedule_unit} at which the learning rate changes, ascending, each greater than 0"
            raise ValueError(f"optimizer.schedule_steps={steps} must give {rule}")
