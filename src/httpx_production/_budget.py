"""RetryBudget: keeps retries a small share of the traffic. Needs a clock and a lock, hence not
in `retry.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Any, Final

SLOTS: Final = 10  # the window moves in tenths: cheap to count, exact enough

Origin = tuple[str, bytes]  # scheme, host:port


class Slot:
    """What was counted since `start`, for a tenth of the window."""

    def __init__(self, start: float) -> None:
        self.start, self.successes, self.retries = start, 0, 0


class RetryBudget:
    """A token bucket per origin: `burst` retries at any time, plus a share of the successes.

    Five attempts multiply the load on a failing service by 4.6, and an overloaded one never
    recovers; with a budget it does (Google SRE book, "Handling Overload"; Finagle's RetryBudget).
    Shared where the same object is given to several clients; thread-safe.

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
        self._clock, self._lock = clock, Lock()
        self._origins: dict[Origin, deque[Slot]] = {}

    def __repr__(self) -> str:
        return f"RetryBudget(burst={self.burst}, ratio={self.ratio}, window={self.window})"

    def deposit(self, origin: Origin, *, refund: bool) -> None:
        """Count a success; `refund` gives the token of the retry that brought it back."""
        with self._lock:
            slot = self._slot(origin)
            slot.successes += 1
            slot.retries -= refund

    def withdraw(self, origin: Origin) -> bool:
        """Take a token for a retry; False when the budget is empty."""
        with self._lock:
            slot, slots = self._slot(origin), self._origins[origin]
            earned = self.ratio * sum(one.successes for one in slots)
            left = self.burst + earned - sum(one.retries for one in slots)
            allowed = left > 1 - 1e-9  # ten times 0.1 are one
            slot.retries += allowed
            return allowed

    def _slot(self, origin: Origin) -> Slot:
        """Return the origin's current slot, having dropped what the window left behind."""
        now = self._clock()
        slots = self._origins.get(origin)
        if slots is None:
            self._forget_quiet_origins(now)
            slots = self._origins[origin] = deque()
        if not slots or now - slots[-1].start >= self.window / SLOTS:
            slots.append(Slot(now))
            while now - slots[0].start >= self.window:
                slots.popleft()
        return slots[-1]

    def _forget_quiet_origins(self, now: float) -> None:
        edge = now - self.window
        for origin in [one for one, slots in self._origins.items() if slots[-1].start <= edge]:
            del self._origins[origin]


def _validate(name: str, value: Any, *, zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value < float("inf") or (value == 0 and not zero):
        least = "at least 0" if zero else "more than 0"
        raise ValueError(f"{name} must be finite and {least}, not {value!r}")
