"""The largest batch that fits, with few compilations: memory grows with the clips along a straight line."""

from __future__ import annotations

from collections.abc import Callable

from vivit_jax.compile.ahead import Compiled


def largest_batch(
    compile_with: Callable[[int], Compiled], memory: int, start: int, at_most: int = 1024
) -> tuple[int, dict[int, Compiled]]:
    """The most clips on a device with which a program fits.

    From two batches that were compiled a line is drawn, and where it crosses the memory that there is, is tried next:
    usually four compilations. What is returned was compiled, as was one clip more, which does not fit.

    Args:
      compile_with: clips on a device -> what the compiler says.
      memory: bytes of a device.
      start: clips to begin with, at least 1.
      at_most: where the search ends.

    Returns:
      (clips, 0 where not even one fits; all that was compiled, by its clips).
    """
    tried: dict[int, Compiled] = {}
    low, high = 0, at_most + 1  # fits; does not
    clips = max(1, min(start, at_most))
    while high - low > 1:
        found = tried[clips] = compile_with(clips)
        low, high = (clips, high) if found.fits else (low, clips)
        clips = _next(tried, low, high, found.available or memory)
    return low, tried


def _next(tried: dict[int, Compiled], low: int, high: int, memory: int) -> int:
    """The next batch to try, strictly between `low` and `high` unless nothing lies there."""
    fitting = sorted((clips, found.peak) for clips, found in tried.items() if found.fits)
    refused = tried.get(high)
    if len(fitting) >= 2 and len(tried) % 3:
        (first, less), (second, more) = fitting[0], fitting[-1]
        slope = (more - less) / (second - first)
        guess = int(second + (memory - more) / slope) if slope > 0 else high - 1
    elif low and refused is None:
        guess = 2 * low
    elif not low and refused.peak > memory:
        guess = high * memory // refused.peak
    else:
        guess = (low + high) // 2  # also every third time: memory is not quite a straight line
    return max(low + 1, min(guess, high - 1))
