"""attempt_timeout and total_timeout: timeouts that shrink while a call goes on.

httpcore asks `request.extensions["timeout"]` at each operation; a `Deadline` there answers with
what is left. Nothing of this exists in a call without one of the two. All times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx

CANCEL_GRACE = 0.05  # for transports that keep the deadline by themselves, and name the phase
SHORTEST = 0.001  # to others: a socket's timeout of 0 would mean "non-blocking"


class LiveTimeout(float):
    """A timeout that knows its deadline: a plain float to whoever does not ask `current_value`.

    httpcore reads a phase's timeout once and uses it for each chunk; our network streams ask
    again at each operation, so that dripping bytes do not start the clock anew.
    """

    phase: float
    until: float

    def __new__(cls, phase: float | None, until: float) -> LiveTimeout:
        """Make the timeout of one phase (seconds, None = no limit) that ends at `until`."""
        phase = math.inf if phase is None else float(phase)
        self = super().__new__(cls, min(phase, max(SHORTEST, until - monotonic())))
        self.phase, self.until = phase, until
        return self


def current_value(timeout: float | None) -> float | None:
    """Return what a timeout is worth at this moment: 0 or less when its deadline has passed."""
    if isinstance(timeout, LiveTimeout):
        return min(timeout.phase, timeout.until - monotonic())
    return timeout


class Deadline(dict[str, float | None]):
    """The four phases as httpx has them, each answered as min(phase, what is left).

    They end at the instant `until`, that many `seconds` after the start, as the `setting` has it.
    `dict(deadline)` gives the phases back as they were.
    """

    __slots__ = ("seconds", "setting", "until")

    until: float
    seconds: float
    setting: str

    def get(self, key: object, default: Any = None, /) -> Any:
        """Return the phase's timeout, never longer than what is left."""
        phase: float | None = super().get(str(key), default)
        return phase if self.until == math.inf else LiveTimeout(phase, self.until)

    def __getitem__(self, key: str) -> float | None:
        phase = super().__getitem__(key)
        return phase if self.until == math.inf else LiveTimeout(phase, self.until)

    @property
    def left(self) -> float:
        """Seconds until the deadline, negative when it has passed."""
        return self.until - monotonic()

    def follow(self, other: Deadline) -> None:
        """End when another one does."""
        self.until, self.setting, self.seconds = other.until, other.setting, other.seconds

    def lift(self) -> None:
        """Give the phases alone from now on: a redirect's Request keeps this after the call."""
        self.until = math.inf

    def end(self, message: str) -> None:
        """Raise when the deadline has passed, else lift it."""
        if self.until <= monotonic():
            raise self._expired(message, httpx.ReadTimeout)
        self.until = math.inf

    def add_note(self, exc: BaseException, *, at_once: bool = False) -> None:
        """Say, once, which setting ran out; the exception alone names a phase."""
        note = f"{self.setting} of {self.seconds:g} s ran out"
        if (at_once or self.left < 0.01) and note not in getattr(exc, "__notes__", ()):
            exc.add_note(note)

    def check(self, message: str, kind: type[httpx.TimeoutException] = httpx.ReadTimeout) -> None:
        """Raise when the deadline has passed: asked before a request and between two chunks."""
        if self.until <= monotonic():
            raise self._expired(message, kind)

    def _expired(self, message: str, kind: type[httpx.TimeoutException]) -> Exception:
        exc = kind(message)
        self.add_note(exc)
        return exc

    @contextmanager
    def cancels(
        self, message: str, kind: type[httpx.TimeoutException] = httpx.ReadTimeout
    ) -> Generator[None]:
        """Cancel what goes on after the deadline: an ASGI app, say, or the caller's own code.

        Only for the async client: a blocking call can't be cancelled.
        """
        import anyio  # here, because `import httpx_production` should not cost more than httpx

        with anyio.move_on_after(max(0.0, self.left) + CANCEL_GRACE) as scope:
            yield
        if scope.cancelled_caught:
            self.check(message, kind)


def make_deadline(
    phases: dict[str, float | None],
    started: float,
    seconds: float | None,
    setting: str = "total_timeout",
) -> Deadline:
    """Return a deadline so many seconds (None: never) after `started`.

    Not in an `__init__`, for which CPython leaves its loop and comes back (900 instructions).
    """
    deadline = Deadline(phases)
    deadline.until = math.inf if seconds is None else started + seconds
    deadline.seconds, deadline.setting = seconds or 0.0, setting
    return deadline


def deadline_of_attempt(deadline: Deadline, attempt_timeout: float | None) -> Deadline:
    """Return the nearer one for an attempt that begins now, in a call with a deadline."""
    now = monotonic()
    if attempt_timeout is None or now + attempt_timeout >= deadline.until:
        return deadline
    return make_deadline(dict(deadline), now, attempt_timeout, "attempt_timeout")


class TimedAuth(httpx.Auth):
    """An auth flow whose own requests (a token endpoint's, say) have the call's timeouts too.

    A Request that a flow makes itself has no timeouts at all in httpx.
    """

    def __init__(self, auth: httpx.Auth) -> None:
        self.wrapped = auth

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Run the wrapped flow, handing each of its requests the timeouts."""
        lent = _LentTimeouts(request.extensions["timeout"])
        flow = self.wrapped.sync_auth_flow(request)
        try:
            outgoing = next(flow)
            while True:
                lent.to(outgoing)
                outgoing = flow.send((yield outgoing))
        except StopIteration:
            return
        finally:
            lent.take_back()
            flow.close()

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do the same for the async client."""
        lent = _LentTimeouts(request.extensions["timeout"])
        flow = self.wrapped.async_auth_flow(request)
        try:
            outgoing = await anext(flow)
            while True:
                lent.to(outgoing)
                outgoing = await flow.asend((yield outgoing))
        except StopAsyncIteration:
            return
        finally:
            lent.take_back()
            await flow.aclose()


class _LentTimeouts:
    """What a flow's own requests have of the call's; a flow may keep them for its next call."""

    def __init__(self, timeouts: dict[str, float | None]) -> None:
        if not isinstance(timeouts, Deadline):  # which a later call would take for the flow's own
            timeouts = make_deadline(timeouts, 0.0, None)
        self._timeouts: Deadline = timeouts
        self._requests: list[httpx.Request] = []
        self._last: httpx.Request | None = None

    def to(self, request: httpx.Request) -> None:
        """Lend a request the timeouts, unless it has some; no request is sent too late."""
        self._timeouts.check("the auth flow did not end in time")
        self._last = request
        timeouts = request.extensions.get("timeout")
        if timeouts is not self._timeouts and isinstance(timeouts, Deadline | None):
            # None of its own, or what an earlier call has left it.
            request.extensions["timeout"] = self._timeouts
            self._requests.append(request)

    def take_back(self) -> None:
        """Leave the requests as they were, but the last one, whose body may be yet to be read."""
        for request in self._requests:
            if request is not self._last:
                request.extensions.pop("timeout", None)


_WITHOUT_REQUESTS = (httpx.BasicAuth, httpx.DigestAuth, httpx.NetRCAuth)


def with_timeouts(auth: Any) -> Any:
    """Wrap an auth flow that may make requests of its own; leave all else as it is."""
    if isinstance(auth, httpx.Auth) and type(auth) not in (*_WITHOUT_REQUESTS, TimedAuth):
        return TimedAuth(auth)
    return auth
