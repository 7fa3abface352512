"""The hook protocol of the train loop: what a run does around its steps besides training."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Hook:
    """Base of the hooks; its methods do nothing. `step` counts from 1, `state` and `metrics` are on the devices."""

    def before_batch(self, step: int) -> None:
        """Called before the loop takes the batch of a step."""

    def after_batch(self, step: int) -> None:
        """Called when the loop has the batch of a step: the step before is dispatched, but its hooks are not called."""

    def before_step(self, step: int, state: Any) -> None:
        """Called with the state before the step."""

    def after_step(self, step: int, state: Any, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Called when the step is dispatched. `batch` holds this process's rows as NumPy arrays."""

    def flush(self, step: int, state: Any) -> None:
        """Called before evaluation and saving: does what was deferred, and may wait for the devices."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Surrounds evaluation and saving."""
        yield

    def close(self, failed: bool) -> None:
        """Called once, after the last step or, with `failed`, after an exception."""


class Hooks(Hook, contextlib.AbstractContextManager):
    """Calls the methods of several hooks, in their order; a context manager that closes them."""

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = tuple(hooks)

    def _call(self, method: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, method)(*args)

    before_batch = functools.partialmethod(_call, "before_batch")
    after_batch = functools.partialmethod(_call, "after_batch")
    before_step = functools.partialmethod(_call, "before_step")
    after_step = functools.partialmethod(_call, "after_step")
    flush = functools.partialmethod(_call, "flush")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.paused())
            yield

    def close(self, failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # closes the others when one fails
            for hook in reversed(self.hooks):
                stack.callback(hook.close, failed)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(failed=kind is not None)
