"""total_timeout as one live deadline: timeouts that shrink while a call goes on.

httpcore asks `request.extensions["timeout"]` at each operation; a `Deadline` there answers with
what is left. Nothing of this exists in a call without a total_timeout.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx

GRACE = 0.05  # seconds, for those who keep the deadline by themselves
SHORTEST = 0.001  # a socket timeout of 0 would mean "non-blocking"


class Left(float):
    """A timeout that knows its deadline: a plain float to whoever does not ask `now()`.

    httpcore reads a phase's timeout once and uses it for each chunk; our network streams ask
    again at each operation, so that dripping bytes do not start the clock anew.
    """

    phase: float
    until: float

    def __new__(cls, phase: float | None, until: float) -> Left:
        """Make the timeout of one phase (seconds, None = no limit) that ends at `until`."""
        phase = float("inf") if phase is None else float(phase)
        self = super().__new__(cls, min(phase, max(SHORTEST, until - monotonic())))
        self.phase, self.until = phase, until
        return self

    def now(self) -> float:
        """Seconds that this operation may take, at least a millisecond."""
        return min(self.phase, max(SHORTEST, self.until - monotonic()))


def remaining(timeout: float | None) -> float | None:
    """Return what a timeout is worth at this moment."""
    return timeout.now() if isinstance(timeout, Left) else timeout


class Deadline(dict[str, float | None]):
    """The four phases as httpx has them, each answered as min(phase, what is left).

    `dict(deadline)` gives the phases back as they were.
    """

    def __init__(self, phases: dict[str, float | None], until: float, total: float) -> None:
        super().__init__(phases)
        self.until, self.total = until, total

    def get(self, key: object, default: Any = None, /) -> Any:
        """Return the phase's timeout, never longer than what is left of the call."""
        return Left(super().get(key, default), self.until)  # type: ignore[call-overload]

    def __getitem__(self, key: str) -> float | None:
        return Left(super().__getitem__(key), self.until)

    @property
    def left(self) -> float:
        """Seconds until the deadline, negative when it has passed."""
        return self.until - monotonic()

    def explain(self, exc: BaseException) -> None:
        """Say, once, that it was total_timeout that ran out; the exception alone names a phase."""
        note = f"total_timeout of {self.total:g} s ran out"
        if self.left < 0.01 and note not in getattr(exc, "__notes__", ()):
            exc.add_note(note)

    @contextmanager
    def enforced(self, request: httpx.Request) -> Generator[None]:
        """Cancel what goes on after the deadline: an ASGI app, say, or aiohttp's transport.

        They ask for timeouts once, or never. httpx's own transports have raised by then, and
        named the phase. Only for the async client: a blocking call can't be cancelled.
        """
        import anyio  # here, because `import httpx_production` should not cost more than httpx

        with anyio.move_on_after(max(0.0, self.left) + GRACE) as scope:
            yield
        if scope.cancelled_caught:
            exc = httpx.ReadTimeout("the response did not come in time", request=request)
            self.explain(exc)
            raise exc

    def check(self, request: httpx.Request) -> None:
        """Raise `httpx.ReadTimeout` when the deadline has passed: asked between two chunks."""
        if self.left <= 0:
            exc = httpx.ReadTimeout("the response body did not end in time", request=request)
            self.explain(exc)
            raise exc


class DeadlineAuth(httpx.Auth):
    """An auth flow whose own requests (a token endpoint's, say) are bound by the deadline too.

    A Request that a flow makes itself has no timeouts at all in httpx.
    """

    def __init__(self, auth: httpx.Auth, deadline: Deadline) -> None:
        self._auth, self._deadline = auth, deadline

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Run the wrapped flow, handing each of its requests the deadline."""
        flow = self._auth.sync_auth_flow(request)
        try:
            outgoing = next(flow)
            while True:
                outgoing.extensions.setdefault("timeout", self._deadline)
                outgoing = flow.send((yield outgoing))
        except StopIteration:
            return
        finally:
            flow.close()

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do the same for the async client."""
        flow = self._auth.async_auth_flow(request)
        try:
            outgoing = await anext(flow)
            while True:
                outgoing.extensions.setdefault("timeout", self._deadline)
                outgoing = await flow.asend((yield outgoing))
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()
