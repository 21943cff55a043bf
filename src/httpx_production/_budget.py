"""RetryBudget: keeps retries a small share of the traffic. Needs a clock and a lock, hence not
in `retry.py`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import RLock
from time import monotonic
from typing import Any, Final, Self

PERIODS: Final = 10  # the window moves in tenths: cheap to count, exact enough

Origin = tuple[str, bytes]  # scheme, host:port

# One for all budgets, held for microseconds. Its own thread may come in again, from a signal
# handler or from a finalizer that the garbage collector runs anywhere: so what can be seen from
# there is always whole, and nothing is iterated over that it could change.
_lock = RLock()


def _renew_lock() -> None:
    """Make a child of fork() independent of a thread that held the lock and isn't there."""
    global _lock
    _lock = RLock()


if sys.platform != "win32":  # pragma: no branch
    os.register_at_fork(after_in_child=_renew_lock)


class Period:
    """What was counted since `start`, for a tenth of the window."""

    def __init__(self, start: float) -> None:
        self.start: float = start
        self.successes: int = 0
        self.retries: int = 0


class RetryBudget:
    """A token bucket per origin: `burst` retries at any time, plus a share of the successes.

    Five attempts multiply the load on a failing service by 4.6, and an overloaded one never
    recovers; with a budget it does (Google SRE book, "Handling Overload"; Finagle's RetryBudget).
    Shared where the same object is given to several clients, and by copies of a policy; pickled, it
    travels as its settings. Thread-safe; usable in signal handlers and after fork().

    Args:
        burst: retries allowed within a window whatever the traffic, at least 0.
        ratio: share of the window's successes that may be spent on retries besides, at least 0.
        window: seconds, more than 0, that successes and retries are remembered.
        clock: tells the seconds of a clock that never goes back; for tests and simulations.

    Raises:
        TypeError, ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        *,
        burst: int = 10,
        ratio: float = 0.1,
        window: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        _validate("burst", burst, zero=True)
        _validate("ratio", ratio, zero=True)
        _validate("window", window, zero=False)
        self.burst: int = burst
        self.ratio: float = ratio
        self.window: float = window
        self._clock = clock
        self._origins: dict[Origin, deque[Period]] = {}

    def __repr__(self) -> str:
        return f"RetryBudget(burst={self.burst}, ratio={self.ratio}, window={self.window})"

    def __copy__(self) -> Self:
        return self  # two would allow twice as many retries

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        numbers: Any = {"burst": self.burst, "ratio": self.ratio, "window": self.window}
        return partial(type(self), **numbers, clock=self._clock), ()

    def deposit(self, origin: Origin, *, refund: Period | None) -> None:
        """Count a success; `refund` is the token of the retry that brought it, or None.

        The token goes back to where it was taken. When the window has moved on since, it was
        forgotten there already, and the budget gains nothing.
        """
        now = self._clock()
        with _lock:
            self._periods(origin, now)[-1].successes += 1
            if refund is not None:
                refund.retries -= 1

    def withdraw(self, origin: Origin) -> Period | None:
        """Take a token for a retry, to be given back if it succeeds; None: the budget is empty."""
        now = self._clock()
        with _lock:
            periods = tuple(self._periods(origin, now))
            earned = self.ratio * sum(one.successes for one in periods)
            left = self.burst + earned - sum(one.retries for one in periods)
            if left <= 1 - 1e-9:  # ten times 0.1 are one
                return None
            periods[-1].retries += 1
            return periods[-1]

    def _periods(self, origin: Origin, now: float) -> deque[Period]:
        """Return the origin's window, the current period last; what it left behind is dropped."""
        periods = self._origins.get(origin)
        if periods is None:
            self._forget_quiet_origins(now)
            periods = self._origins.setdefault(origin, deque([Period(now)]))
        if now - periods[-1].start >= self.window / PERIODS:
            periods.append(Period(now))
            while now - periods[0].start >= self.window:
                periods.popleft()
        return periods

    def _forget_quiet_origins(self, now: float) -> None:
        edge = now - self.window
        for origin, periods in tuple(self._origins.items()):
            if periods[-1].start <= edge:
                self._origins.pop(origin, None)


def _validate(name: str, value: Any, *, zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value < float("inf") or (value == 0 and not zero):
        least = "at least 0" if zero else "more than 0"
        raise ValueError(f"{name} must be finite and {least}, not {value!r}")
