"""Exponential backoff with jitter: how long to wait before the next try.

The arithmetic is cenkalti/backoff v4's (`exponential.go`), which the original's `RetryRequest` used with its
defaults.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackoffShape:
    """The waits of a series of tries.

    Defaults: cenkalti's `NewExponentialBackOff`. Seconds; `max_elapsed_s` 0 = no end.
    """

    initial_s: float = 0.5
    multiplier: float = 1.5
    randomization: float = 0.5
    max_interval_s: float = 60.0
    max_elapsed_s: float = 15 * 60.0


class ExponentialBackOff:
    """One series of waits, its clock started when it is made."""

    def __init__(
        self,
        shape: BackoffShape = BackoffShape(),
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._shape = shape
        self._clock = clock
        self._uniform = uniform
        self._started_s = clock()
        self._interval_s = shape.initial_s

    def next_s(self) -> float | None:
        """Give the next wait: interval · U(1 - r, 1 + r). None when it would end after `max_elapsed_s`."""
        shape = self._shape
        spread_s = shape.randomization * self._interval_s
        wait_s = self._uniform(self._interval_s - spread_s, self._interval_s + spread_s)
        self._interval_s = min(shape.max_interval_s, self._interval_s * shape.multiplier)
        elapsed_s = self._clock() - self._started_s
        if shape.max_elapsed_s and elapsed_s + wait_s > shape.max_elapsed_s:
            return None
        return wait_s
