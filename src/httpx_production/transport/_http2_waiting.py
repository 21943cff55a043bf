"""The requests of one HTTP/2 connection wait for its socket: who does it for all, and how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Any

from .._deadline import current_value
from ._http2_stream import HTTP2Stream
from ._runtime import Runtime


class Role:
    """Waiting for the socket, by one request for all of them.

    The others sleep. Whoever has the role gives it up at each step, and on every way out somebody
    who sleeps is woken to take it over.
    """

    def __init__(self, wait: Callable[[float | None], Any], runtime: Runtime) -> None:
        self._wait, self._runtime = wait, runtime
        self.owner: HTTP2Stream | None = None
        self._asleep: dict[HTTP2Stream, None] = {}

    async def wait(self, stream: HTTP2Stream, limit: float | None) -> bool:
        """Wait until there may be news for a stream; False when `limit` seconds have passed."""
        if self.owner is None:
            self.owner = stream
            try:
                result: bool = await self._wait(limit)
                return result
            finally:
                self.owner = None
        stream.event = self._runtime.event()
        self._asleep[stream] = None
        try:
            return await stream.event.wait(limit)
        finally:
            self._asleep.pop(stream, None)

    def hand_over(self) -> None:
        """Wake one who sleeps, when nobody has the role."""
        if self.owner is None and self._asleep:
            next(iter(self._asleep)).wake()


class Clock:
    """What is left of a timeout; begins anew when `heard` says that the server is still there."""

    def __init__(self, timeout: float | None, heard: Callable[[], float]) -> None:
        self._timeout, self._heard = timeout, heard
        self._started = monotonic()
        self._waited = 0.0  # in vain: also a clock that stands still (freezegun) comes to an end

    def left(self) -> float | None:
        """Return the seconds that are left, None for no limit."""
        if (heard := self._heard()) > self._started:
            self._started, self._waited = heard, 0.0
        limit = current_value(self._timeout)
        if limit is None or self._timeout is None:
            return None
        return min(limit, self._timeout - max(self.elapsed(), self._waited))

    def elapsed(self) -> float:
        """Return the seconds since it began."""
        return monotonic() - self._started

    def add(self, seconds: float | None) -> None:
        """Note a wait that brought nothing."""
        self._waited += math.inf if seconds is None else seconds
